//! Whom to trust behind `https`: the authorities of this system, as OpenSSL and Nix find them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Variables that name the file of authorities, first wins; the first is Nix's.
const VARIABLES: [&str; 2] = ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"];
/// Where distributions keep the authorities.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What a connection needs to know; the error is a sentence.
pub(super) fn config() -> Result<Arc<ClientConfig>, String> {
    let named =
        VARIABLES.iter().filter_map(std::env::var_os).find(|value| !value.is_empty()).map(PathBuf::from);
    let bundle = named.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()));
    let bundle = bundle.ok_or_else(|| {
        format!("this system has no file of certificate authorities; set {} to one", VARIABLES[1])
    })?;
    let roots = read(&bundle).map_err(|why| format!("{} {why}", bundle.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn read(bundle: &Path) -> Result<RootCertStore, String> {
    let certificates =
        CertificateDer::pem_file_iter(bundle).map_err(|error| format!("cannot be read: {error}"))?;
    let mut roots = RootCertStore::empty();
    // Bundles hold authorities with encodings that rustls refuses: the others are still good.
    roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    if roots.is_empty() {
        return Err("holds no certificate authority".to_owned());
    }
    Ok(roots)
}
