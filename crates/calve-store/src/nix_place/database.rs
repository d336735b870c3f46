//! Nix's database written to: what `nix-store --load-db` does, and signatures and content addresses beside, in one transaction
//! and without the start of a program (`src/libstore/{schema.sql,local-store.cc}` of Nix).

use std::time::{SystemTime, UNIX_EPOCH};

use calve_nix::StorePath;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::nix_db::BUSY_TIMEOUT;
use crate::{PathInfo, Store, StoreError, TransferError};

/// Paths of this kind have rows of their own for their outputs, which Nix makes.
const DERIVATION: &str = ".drv";

/// Whether all that belongs to these paths is known here.
pub(super) fn knows(infos: &[&PathInfo]) -> bool {
    !infos.iter().any(|info| info.path.name().ends_with(DERIVATION))
}

/// Registers paths that are not valid yet, all or none. All that they refer to is valid or among them.
pub(super) fn register(store: &Store, infos: &[&PathInfo]) -> Result<(), TransferError> {
    write(store, |transaction| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let sql = "INSERT INTO ValidPaths (path, hash, registrationTime, deriver, narSize, sigs, ca)
                   VALUES (?, ?, ?, ?, ?, ?, ?)";
        let mut insert = transaction.prepare(sql)?;
        let mut numbers = Vec::with_capacity(infos.len());
        for info in infos {
            let hash = format!("sha256:{}", info.nar_hash.to_hex());
            let deriver = info.deriver.as_ref().map(ToString::to_string);
            let (size, path) = (info.nar_size.cast_signed(), info.path.to_string());
            let row = params![path, hash, now.cast_signed(), deriver, size, signatures(info), info.ca];
            numbers.push(insert.insert(row)?);
        }
        let mut number = transaction.prepare("SELECT id FROM ValidPaths WHERE path = ?")?;
        let mut refer =
            transaction.prepare("INSERT OR REPLACE INTO Refs (referrer, reference) VALUES (?, ?)")?;
        for (info, referrer) in infos.iter().zip(numbers) {
            for reference in &info.references {
                let id = number.query_row([reference.to_string()], |row| row.get::<_, i64>(0)).optional()?;
                let Some(id) = id else { return Ok(Err((info.path.clone(), reference.clone()))) };
                refer.execute([referrer, id])?;
            }
        }
        Ok(Ok(()))
    })?
    .map_err(|(path, reference): (StorePath, StorePath)| TransferError::NixRegistration {
        paths: infos.len(),
        message: format!("{path} refers to {reference}, which is not valid"),
    })
}

/// `nix-store --load-db` takes neither signatures nor content addresses. Without them a path is as valid.
pub(super) fn add_signatures(store: &Store, infos: &[&PathInfo]) -> Result<(), TransferError> {
    write(store, |transaction| {
        let mut update = transaction.prepare("UPDATE ValidPaths SET sigs = ?, ca = ? WHERE path = ?")?;
        for info in infos.iter().filter(|info| info.ca.is_some() || !info.signatures.is_empty()) {
            update.execute((signatures(info), &info.ca, info.path.to_string()))?;
        }
        Ok(Ok::<_, ()>(()))
    })
    .map(drop)
}

fn signatures(info: &PathInfo) -> Option<String> {
    (!info.signatures.is_empty()).then(|| info.signatures.join(" "))
}

/// Makes a change, unless it says that it cannot be made.
fn write<E>(
    store: &Store,
    change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<Result<(), E>>,
) -> Result<Result<(), E>, TransferError> {
    let work = || {
        let mut connection =
            Connection::open_with_flags(store.nix.path(), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // As Nix has it: a power failure may lose what was written last, and damages nothing.
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let changed = change(&transaction)?;
        if changed.is_ok() {
            transaction.commit()?;
        }
        Ok(changed)
    };
    let failed = |source| StoreError::NixDb { path: store.nix.path().to_owned(), source };
    Ok(work().map_err(failed)?)
}
