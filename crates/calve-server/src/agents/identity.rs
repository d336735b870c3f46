//! The server's TLS identity towards agents that dial in: a self-signed certificate that they know by its fingerprint.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use calve_pin::Fingerprint;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Name of the file with key and certificate, in the data directory.
const FILE_NAME: &str = "agents.pem";
/// The name in the certificate. Nobody checks it: agents compare the fingerprint.
const SUBJECT: &str = "calve-server";

/// Key and certificate.
#[derive(Debug)]
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("the server's key for agents in {} cannot be used", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file holds no key and certificate.
    #[error("{} holds no key and certificate; with the file removed the server makes new ones, which agents must be told", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// A key could not be made.
    #[error("a key for agents cannot be made")]
    Make(#[from] rcgen::Error),
}

impl Identity {
    /// The identity that is kept in `data_dir`, made where there is none. The file is for its owner alone.
    pub fn load_or_make(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = data_dir.join(FILE_NAME);
        let file_error = |source| IdentityError::File { path: path.clone(), source };
        let pem = match fs::read(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let made = rcgen::generate_simple_self_signed([SUBJECT.to_owned()])?;
                let pem = made.signing_key.serialize_pem() + &made.cert.pem();
                write_secret(&path, pem.as_bytes()).map_err(file_error)?;
                pem.into_bytes()
            }
            Err(error) => return Err(file_error(error)),
        };
        let malformed = || IdentityError::Malformed { path: path.clone() };
        let certificate = CertificateDer::from_pem_slice(&pem).map_err(|_| malformed())?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| malformed())?;
        let identity = Self { certificate, key };
        identity.tls().ok_or_else(malformed)?;
        Ok(identity)
    }

    /// SHA-256 of the certificate (its DER form) in 64 lower-case hexadecimal digits: what agents are told to expect.
    pub fn fingerprint(&self) -> String {
        format!("{:x}", Fingerprint::of(&self.certificate))
    }

    /// The TLS configuration; none where key and certificate do not belong together.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key());
        config.ok().map(Arc::new)
    }
}

/// Writes a file for its owner alone, at once or not at all.
fn write_secret(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("pem.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_identity_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let made = Identity::load_or_make(dir.path()).unwrap();
        let loaded = Identity::load_or_make(dir.path()).unwrap();
        assert_eq!(made.fingerprint(), loaded.fingerprint());
        assert_eq!(made.fingerprint().len(), 64);
        let mode = fs::metadata(dir.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_spoilt_identity_is_refused_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), "nonsense").unwrap();
        let error = Identity::load_or_make(dir.path()).unwrap_err();
        assert!(error.to_string().contains("with the file removed"), "{error}");
    }
}
