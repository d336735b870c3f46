//! TLS with a server whose certificate is known by its fingerprint: of agents with their server, and of nodes of Proxmox VE, who
//! sign their own certificates.
//!
//! *Invariant*: no I/O and no authorities; what a pinned server shows is compared with its pin and with nothing else, and the
//! handshake's signature is checked as always.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

/// SHA-256 of a certificate in DER.
///
/// Read with or without colons, in capitals or not. Shown as OpenSSL and `pvenode cert info` show it, `0A:1B:…`; by `{:x}` as
/// 64 small digits, as calve's own server shows its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// A text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 64 hexadecimal digits, with or without colons")]
pub struct FingerprintError;

impl Fingerprint {
    /// Of this certificate.
    pub fn of(certificate_der: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate_der);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// Trusts a server with this certificate, and no other, whatever its name and who signed it. Any other server is an error
    /// that says which fingerprint it has.
    pub fn trusted(self) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(Pinned { fingerprint: self, provider: provider.clone() });
        ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring knows the versions that are safe")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth()
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;
    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let digits: Option<Vec<u8>> = text.trim().bytes().filter(|byte| *byte != b':').map(value).collect();
        let digits: [u8; 64] = digits.and_then(|it| it.try_into().ok()).ok_or(FingerprintError)?;
        Ok(Self(std::array::from_fn(|n| digits[2 * n] << 4 | digits[2 * n + 1])))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if n == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::LowerHex for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[derive(Debug)]
struct Pinned {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = Fingerprint::of(end_entity);
        if shown == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::General(format!("its certificate is not the pinned one: it has the fingerprint {shown}")))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_they_are_shown() {
        let fingerprint = Fingerprint::of(b"certificate");
        let shown = fingerprint.to_string();
        assert_eq!((shown.len(), shown.matches(':').count()), (95, 31));
        let plain = format!("{fingerprint:x}");
        assert_eq!(plain, shown.replace(':', "").to_lowercase());
        for text in [shown.clone(), plain, format!(" {shown}\n")] {
            assert_eq!(text.parse(), Ok(fingerprint), "{text}");
        }
        assert_eq!("0a".repeat(32).parse(), Ok(Fingerprint([10; 32])));
        // Of 64 digits, and nothing else: neither less, nor more, nor an odd number, nor other letters.
        for bad in ["", "AA:BB", "0a", &shown[3..], &shown[1..], &format!("{shown}:00"), &"G".repeat(64)] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(FingerprintError), "{bad}");
        }
    }

    #[test]
    fn a_server_is_known_by_its_pin_alone_and_another_is_told_by_its_own() {
        let (ours, other) = (CertificateDer::from_slice(b"ours"), CertificateDer::from_slice(b"other"));
        let pinned = Pinned {
            fingerprint: Fingerprint::of(b"ours"),
            provider: Arc::new(rustls::crypto::ring::default_provider()),
        };
        let name = ServerName::try_from("whoever").expect("a name");
        let verify = |certificate| pinned.verify_server_cert(certificate, &[], &name, &[], UnixTime::now());
        assert!(verify(&ours).is_ok());
        let error = verify(&other).expect_err("it is another").to_string();
        assert!(error.contains(&Fingerprint::of(b"other").to_string()), "{error}");
    }
}
