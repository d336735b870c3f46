//! Where a Proxmox VE cluster is, and with which token; all of it from the environment.

use std::str::FromStr;

use calve_pin::Fingerprint;

use super::NAME;
use crate::{Credentials, ErrorKind, OpenError, ProviderError};

/// Names the address of the API, e.g. `https://pve1.example.org:8006`.
pub const API_VARIABLE: &str = "PROXMOX_API_URL";
/// Holds the API token, `USER@REALM!ID=SECRET`.
pub const TOKEN_VARIABLE: &str = "PROXMOX_TOKEN";
/// Holds the fingerprint of the node's certificate; without it the system's authorities are trusted.
pub const FINGERPRINT_VARIABLE: &str = "PROXMOX_FINGERPRINT";
/// Says how a template is copied: `linked` or `full`; without it linked where its storage can.
pub const CLONE_VARIABLE: &str = "PROXMOX_CLONE";
/// Names the storage of the disks of full clones; without it the template's.
pub const STORAGE_VARIABLE: &str = "PROXMOX_STORAGE";
/// Names the storage that takes ISO images; without it the node's first that does.
pub const ISO_STORAGE_VARIABLE: &str = "PROXMOX_ISO_STORAGE";
/// Names the pool of new machines, to which a token's rights can be confined.
pub const POOL_VARIABLE: &str = "PROXMOX_POOL";

/// How a template is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneKind {
    /// Linked where the template's storage can do that, else full.
    Either,
    /// Disks that hold what differs from the template's.
    Linked,
    /// Disks of their own.
    Full,
}

impl FromStr for CloneKind {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "linked" => Ok(Self::Linked),
            "full" => Ok(Self::Full),
            _ => Err(()),
        }
    }
}

/// Where Proxmox VE is, and how machines are made there.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address of the API, without `/api2/json`.
    pub api: String,
    /// The API token.
    pub credentials: Credentials,
    /// The certificate of the API; none where the system's authorities know it.
    pub fingerprint: Option<Fingerprint>,
    /// How a template is copied.
    pub clone: CloneKind,
    /// Storage of the disks of full clones.
    pub storage: Option<String>,
    /// Storage that takes ISO images.
    pub iso_storage: Option<String>,
    /// Pool of new machines.
    pub pool: Option<String>,
}

impl Settings {
    /// From the variables of this module.
    pub fn from_environment(variables: &dyn Fn(&str) -> Option<String>) -> Result<Self, OpenError> {
        let set =
            |name: &str| variables(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let credentials = Credentials::find(NAME, TOKEN_VARIABLE, variables)?;
        let credentials = credentials.shaped("PVEAPIToken=", is_token).ok_or_else(|| {
            wrong(format!(
                "its token is written as USER@REALM!ID=SECRET, which {TOKEN_VARIABLE} does not hold"
            ))
        })?;
        let api = set(API_VARIABLE).ok_or_else(|| {
            wrong(format!(
                "set {API_VARIABLE} to the address of its API, such as https://pve1.example.org:8006"
            ))
        })?;
        let api = api.trim_end_matches('/').trim_end_matches("/api2/json").to_owned();
        let fingerprint = set(FINGERPRINT_VARIABLE).map(|text| text.parse::<Fingerprint>()).transpose();
        let fingerprint = fingerprint.map_err(|error| {
            wrong(format!("{FINGERPRINT_VARIABLE}: {error}, as `pvenode cert info` shows it"))
        })?;
        let clone = match set(CLONE_VARIABLE) {
            None => CloneKind::Either,
            Some(word) => word
                .parse()
                .map_err(|()| wrong(format!("{CLONE_VARIABLE} is {word:?}, and neither linked nor full")))?,
        };
        let name = |variable: &str| match set(variable) {
            Some(word) if !is_name(&word) => Err(wrong(format!("{variable} is {word:?}, which is no name"))),
            word => Ok(word),
        };
        let (storage, iso_storage) = (name(STORAGE_VARIABLE)?, name(ISO_STORAGE_VARIABLE)?);
        Ok(Self { api, credentials, fingerprint, clone, storage, iso_storage, pool: name(POOL_VARIABLE)? })
    }
}

impl Settings {
    /// The token's name, `USER@REALM!ID`.
    pub(super) fn token_id(&self) -> String {
        self.credentials.before('=').to_owned()
    }
}

fn wrong(message: String) -> OpenError {
    OpenError::Settings(ProviderError::new(NAME, ErrorKind::Refused, message))
}

/// `USER@REALM!ID=SECRET`.
fn is_token(text: &str) -> bool {
    let Some((user, rest)) = text.split_once('@') else { return false };
    let Some((realm, rest)) = rest.split_once('!') else { return false };
    let Some((id, secret)) = rest.split_once('=') else { return false };
    [user, realm, id, secret].iter().all(|part| !part.is_empty())
}

/// Whether it names a node, a storage or a pool: it becomes part of a path.
pub(super) fn is_name(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    !text.is_empty() && text.bytes().all(plain) && text != "." && text != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let get =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Settings::from_environment(&get).map_err(|error| error.to_string())
    }

    const TOKEN: (&str, &str) = (TOKEN_VARIABLE, "calve@pve!run=0b0b-secret");
    const API: (&str, &str) = (API_VARIABLE, "https://pve:8006/api2/json/");

    #[test]
    fn settings_are_read_and_bad_ones_get_one_sentence_without_the_secret() {
        let settings = read(&[TOKEN, API, (CLONE_VARIABLE, "full"), (POOL_VARIABLE, "")]).unwrap();
        assert_eq!(
            (settings.api.as_str(), settings.clone, &settings.pool),
            ("https://pve:8006", CloneKind::Full, &None)
        );
        assert!(!format!("{settings:?}").contains("secret"));
        let prefixed = read(&[(TOKEN_VARIABLE, "PVEAPIToken=calve@pve!run=0b0b-secret"), API]).unwrap();
        assert!(prefixed.credentials == settings.credentials);
        for (variables, sentence) in [
            (&[API][..], "PROXMOX_TOKEN_FILE"),
            (&[TOKEN], "set PROXMOX_API_URL"),
            (&[(TOKEN_VARIABLE, "secret"), API], "USER@REALM!ID=SECRET"),
            (&[(TOKEN_VARIABLE, "a@pve=secret"), API], "USER@REALM!ID=SECRET"),
            (&[TOKEN, API, (FINGERPRINT_VARIABLE, "12:34")], "pvenode cert info"),
            (&[TOKEN, API, (CLONE_VARIABLE, "half")], "neither linked nor full"),
            (&[TOKEN, API, (ISO_STORAGE_VARIABLE, "a/b")], "no name"),
        ] {
            let error = read(variables).unwrap_err();
            assert!(error.contains(sentence) && !error.contains("secret"), "{error}");
        }
    }
}
