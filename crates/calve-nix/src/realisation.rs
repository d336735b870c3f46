//! Realisations: which store path an output of a content-addressed derivation has turned out to be
//! (`src/libstore/realisation.cc` of Nix).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::sign::{KeyError, PublicKey, SecretKey, Signature, TrustedKeys, VerifyError};
use crate::store_path::is_name;
use crate::{HashError, Sha256Hash, StorePath, StorePathError};

/// Largest realisation in bytes: some ten thousand dependent ones.
pub const REALISATION_MAX_BYTES: usize = 2 << 20;

/// An output of a derivation, `sha256:<64 hexadecimal digits>!<output>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealisationId {
    /// The hash of the derivation without what does not matter to its outputs.
    pub derivation: Sha256Hash,
    output: String,
}

impl RealisationId {
    /// The output called `output` of the derivation with this hash.
    pub fn new(derivation: Sha256Hash, output: &str) -> Result<Self, RealisationError> {
        match is_name(output.as_bytes()) {
            true => Ok(Self { derivation, output: output.to_owned() }),
            false => Err(RealisationError::BadOutput(output.to_owned())),
        }
    }

    /// The output's name.
    pub fn output(&self) -> &str {
        &self.output
    }
}

impl fmt::Display for RealisationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}!{}", self.derivation, self.output)
    }
}

impl FromStr for RealisationId {
    type Err = RealisationError;

    fn from_str(text: &str) -> Result<Self, RealisationError> {
        let (derivation, output) =
            text.split_once('!').ok_or_else(|| RealisationError::BadId(text.to_owned()))?;
        Self::new(derivation.parse()?, output)
    }
}

/// A realisation. Displayed as the JSON that Nix writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realisation {
    /// The output.
    pub id: RealisationId,
    /// What it is.
    pub out_path: StorePath,
    /// Signatures by any keys.
    pub signatures: BTreeSet<Signature>,
    /// What the outputs were that it was built from.
    pub dependent: BTreeMap<RealisationId, StorePath>,
}

/// A text that is no realisation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RealisationError {
    /// It is too large.
    #[error("a realisation of {0} bytes is refused: the limit is {REALISATION_MAX_BYTES}")]
    TooLarge(usize),
    /// It is no JSON.
    #[error("the realisation is no JSON: {0}")]
    NotJson(String),
    /// A field is missing or is no text, list or object where it must be.
    #[error("the realisation has no {field} that is {wanted}")]
    NoField {
        /// The field's name.
        field: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
    /// An id without hash or output.
    #[error("{0:?} is no hash of a derivation, \"!\" and the name of an output")]
    BadId(String),
    /// The output's name is none.
    #[error("{0:?} cannot be the name of an output")]
    BadOutput(String),
    /// No hash.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// No store path.
    #[error(transparent)]
    StorePath(#[from] StorePathError),
    /// No signature.
    #[error(transparent)]
    Signature(#[from] KeyError),
}

impl Realisation {
    /// What is signed of it: its JSON without the signatures.
    pub fn fingerprint(&self) -> String {
        self.json(false)
    }

    /// Adds a signature by `key`.
    pub fn sign(&mut self, key: &SecretKey) {
        self.signatures.insert(key.sign(&self.fingerprint()));
    }

    /// The trusted key that signed it.
    pub fn verify<'a>(&self, trusted: &'a TrustedKeys) -> Result<&'a PublicKey, VerifyError> {
        trusted.verify(&self.fingerprint(), &self.signatures)
    }

    /// JSON without spaces, keys in order. Nothing in it needs escapes: names, hashes and base64 have no quotes, and the names
    /// of keys are escaped.
    fn json(&self, signed: bool) -> String {
        let quoted = |text: String| Value::String(text).to_string();
        let dependent: Vec<_> =
            self.dependent.iter().map(|(id, path)| format!("\"{id}\":\"{}\"", path.base_name())).collect();
        let signatures: Vec<_> =
            self.signatures.iter().map(|signature| quoted(signature.to_string())).collect();
        let signatures = match signed {
            true => format!(",\"signatures\":[{}]", signatures.join(",")),
            false => String::new(),
        };
        format!(
            "{{\"dependentRealisations\":{{{}}},\"id\":\"{}\",\"outPath\":\"{}\"{signatures}}}",
            dependent.join(","),
            self.id,
            self.out_path.base_name()
        )
    }
}

impl fmt::Display for Realisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.json(true))
    }
}

impl FromStr for Realisation {
    type Err = RealisationError;

    /// `signatures` and `dependentRealisations` may be missing, as in what the first versions of Nix wrote.
    fn from_str(text: &str) -> Result<Self, RealisationError> {
        if text.len() > REALISATION_MAX_BYTES {
            return Err(RealisationError::TooLarge(text.len()));
        }
        let json: Value =
            serde_json::from_str(text).map_err(|error| RealisationError::NotJson(error.to_string()))?;
        let signatures = match json.get("signatures") {
            None => Ok(BTreeSet::new()),
            Some(Value::Array(list)) => {
                list.iter().map(|item| Ok(string(Some(item), "signatures")?.parse()?)).collect()
            }
            Some(_) => Err(RealisationError::NoField { field: "signatures", wanted: "a list" }),
        };
        let dependent = match json.get("dependentRealisations") {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(map)) => {
                map.iter().map(|(id, path)| Ok((id.parse()?, out_path(Some(path))?))).collect()
            }
            Some(_) => Err(RealisationError::NoField { field: "dependentRealisations", wanted: "an object" }),
        };
        Ok(Self {
            id: string(json.get("id"), "id")?.parse()?,
            out_path: out_path(json.get("outPath"))?,
            signatures: signatures?,
            dependent: dependent?,
        })
    }
}

fn string<'a>(value: Option<&'a Value>, field: &'static str) -> Result<&'a str, RealisationError> {
    value.and_then(Value::as_str).ok_or(RealisationError::NoField { field, wanted: "text" })
}

fn out_path(value: Option<&Value>) -> Result<StorePath, RealisationError> {
    Ok(StorePath::from_base_name(string(value, "outPath")?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the shape that Nix 2.8 writes; `tests/nix.rs` compares with what it really does.
    const FOO: &str = concat!(
        "{\"dependentRealisations\":{\"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855!dev\":",
        "\"7irhw6z68wvcnj4vkwwna03z52vnp5av-dep\"},",
        "\"id\":\"sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824!out\",",
        "\"outPath\":\"g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo\",\"signatures\":[]}"
    );

    #[test]
    fn it_round_trips_and_signs() {
        let mut realisation: Realisation = FOO.parse().unwrap();
        assert_eq!(realisation.to_string(), FOO);
        assert_eq!(realisation.id.output(), "out");
        let key = SecretKey::from_seed("ours-1\"", [1; 32]).unwrap();
        realisation.sign(&key);
        assert_eq!(realisation.to_string().parse(), Ok(realisation.clone()));
        let trusted = TrustedKeys::from_iter([key.public()]);
        assert!(realisation.verify(&trusted).is_ok());
        realisation.dependent.clear();
        assert!(realisation.verify(&trusted).is_err());
    }

    #[test]
    fn what_is_none_is_refused() {
        for (part, other, message) in [
            ("{", "[", "no JSON"),
            ("\"id\"", "\"di\"", "no id that is text"),
            ("!out", "", "is no hash of a derivation"),
            ("!out", "!a/b", "cannot be the name of an output"),
            ("2cf24dba", "2cf24db", "is no hash by"),
            ("\"g1w7", "\"/nix", "does not begin with"),
            ("[]", "[1]", "no signatures that is text"),
            ("[]", "{}", "no signatures that is a list"),
            ("[]", "[\"x\"]", "no colon"),
        ] {
            let error = FOO.replacen(part, other, 1).parse::<Realisation>().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
