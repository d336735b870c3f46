//! Signatures of store paths: ed25519 over a fingerprint, in the key files and texts of Nix
//! (`src/libutil/signature` and `src/libstore/path-info.cc` of Nix; Nix manual, `nix key`).
//!
//! A key is `<name>:<base64>`, a signature too: the name says which key to try, it proves nothing.

mod error;
mod public;
mod secret;

pub use error::{KeyError, VerifyError};
pub use public::{PublicKey, Signature, TrustedKeys};
pub use secret::SecretKey;

use std::collections::BTreeSet;

use crate::{Sha256Hash, StorePath};

/// Bytes of the seed that a key pair is made from.
pub const SEED_BYTES: usize = 32;
/// Bytes of a public key.
pub const PUBLIC_BYTES: usize = 32;
/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Longest key name in bytes: it stands in file names, logs and every narinfo.
pub const KEY_NAME_MAX_BYTES: usize = 255;

/// What is signed of a store path: which path it is, the hash and size of its NAR, and its references.
pub fn fingerprint(
    path: &StorePath,
    nar_hash: &Sha256Hash,
    nar_size: u64,
    references: &BTreeSet<StorePath>,
) -> String {
    let references: Vec<_> = references.iter().map(StorePath::to_string).collect();
    format!("1;{path};{};{nar_size};{}", nar_hash.to_nix(), references.join(","))
}

/// Splits `<name>:<base64>` and decodes the latter to exactly `N` bytes.
fn split<const N: usize>(text: &str) -> Result<(&str, [u8; N]), KeyError> {
    let (name, encoded) = text.split_once(':').ok_or(KeyError::NoColon)?;
    check_name(name)?;
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded);
    let bytes = bytes.map_err(|_| KeyError::NotBase64 { name: name.to_owned() })?;
    let found = bytes.len();
    let bytes =
        bytes.try_into().map_err(|_| KeyError::BadLength { name: name.to_owned(), found, wanted: N })?;
    Ok((name, bytes))
}

fn join(name: &str, bytes: &[u8]) -> String {
    format!("{name}:{}", base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes))
}

fn check_name(name: &str) -> Result<(), KeyError> {
    let bad = |c: char| c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > KEY_NAME_MAX_BYTES || name.contains(bad) {
        return Err(KeyError::BadName(name.chars().take(KEY_NAME_MAX_BYTES).collect()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made by `nix-store --generate-binary-cache-key test-1 sk pk` of Nix 2.8.
    const SECRET: &str =
        "test-1:4nJXbQaFu52KhDSAxQ/sZDUmbuBuo2iXFPRS0SvJMdPerWzAAo3G4x1+R2CcI/KQ9eFvOImem/bNp/8x6tZXQQ==";
    const PUBLIC: &str = "test-1:3q1swAKNxuMdfkdgnCPykPXhbziJnpv2zaf/MerWV0E=";

    #[test]
    fn key_files_of_nix_are_read_and_written() {
        let secret: SecretKey = SECRET.parse().unwrap();
        assert_eq!((secret.to_text().as_str(), secret.public().to_string().as_str()), (SECRET, PUBLIC));
        assert_eq!(format!("{SECRET}\n").parse::<SecretKey>().unwrap().name(), "test-1");
        assert_eq!(PUBLIC.parse::<PublicKey>().unwrap(), secret.public());
        assert!(!format!("{secret:?}").contains("4nJX"));
    }

    #[test]
    fn bad_keys_are_told_apart_and_never_printed() {
        let cases = [
            ("test-1", "NoColon"),
            (":3q1swAKNxuMdfkdgnCPykPXhbziJnpv2zaf/MerWV0E=", "BadName"),
            ("a b:3q1swAKNxuMdfkdgnCPykPXhbziJnpv2zaf/MerWV0E=", "BadName"),
            ("test-1:%", "NotBase64"),
            ("test-1:3q1swAKNxuMdfkdgnCPykPXhbziJnpv2zaf/MerWV0E=", "BadLength"),
            (
                "test-1:4nJXbQaFu52KhDSAxQ/sZDUmbuBuo2iXFPRS0SvJMdPerWzAAo3G4x1+R2CcI/KQ9eFvOImem/bNp/8x6tZXQA==",
                "HalvesDiffer",
            ),
        ];
        for (text, kind) in cases {
            let error = text.parse::<SecretKey>().unwrap_err();
            assert!(format!("{error:?}").starts_with(kind), "{error:?}");
            assert!(!error.to_string().contains("swAK"), "{error}");
        }
    }

    #[test]
    fn a_signature_counts_only_by_a_trusted_key_over_the_same_fingerprint() {
        let (ours, stranger) =
            (SecretKey::from_seed("ours", [1; 32]).unwrap(), SecretKey::from_seed("x", [2; 32]).unwrap());
        let impostor = SecretKey::from_seed("ours", [3; 32]).unwrap();
        let trusted: TrustedKeys = format!(" {}\n{PUBLIC} ", ours.public()).parse().unwrap();
        let sign = |key: &SecretKey| key.sign("fingerprint");
        assert_eq!(trusted.verify("fingerprint", &[sign(&stranger), sign(&ours)]).unwrap().name(), "ours");
        assert_eq!(trusted.verify("fingerprint", &[sign(&impostor), sign(&ours)]).unwrap().name(), "ours");
        assert_eq!(trusted.verify("fingerprint", &[]), Err(VerifyError::Unsigned));
        let strangers = Err(VerifyError::NoTrustedKey { by: vec!["x".to_owned()] });
        assert_eq!(trusted.verify("fingerprint", &[sign(&stranger)]), strangers);
        let wrong = Err(VerifyError::Wrong { name: "ours".to_owned() });
        assert_eq!(trusted.verify("fingerprint", &[sign(&impostor), sign(&stranger)]), wrong);
        assert_eq!(trusted.verify("fingerprinT", &[sign(&ours)]), wrong);
    }

    proptest! {
        #[test]
        fn keys_and_signatures_round_trip(seed: [u8; 32], name in "[a-z.-][a-z0-9.-]{0,20}", message: String) {
            let secret = SecretKey::from_seed(&name, seed).unwrap();
            let again: SecretKey = secret.to_text().parse().unwrap();
            let signature = again.sign(&message);
            prop_assert_eq!(signature.to_string().parse::<Signature>().unwrap(), signature.clone());
            let public: PublicKey = secret.public().to_string().parse().unwrap();
            prop_assert!(public.verify(&message, &signature));
            let other = message + ".";
            prop_assert!(!public.verify(&other, &signature));
        }
    }
}
