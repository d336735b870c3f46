//! All that Nix's database knows of paths.

use std::collections::{BTreeMap, BTreeSet};

use calve_nix::StorePath;
use rusqlite::Connection;

use super::NixDb;
use crate::{PathInfo, StoreError};

/// A row of `ValidPaths`.
struct Row {
    path: String,
    hash: String,
    nar_size: Option<i64>,
    deriver: Option<String>,
    signatures: Option<String>,
    ca: Option<String>,
}

impl NixDb {
    /// Which of `paths` Nix calls valid.
    pub fn valid_among(&self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>, StoreError> {
        let list = json(paths);
        let rows = self.query(|db| {
            let sql = "SELECT path FROM ValidPaths WHERE path IN (SELECT value FROM json_each(?))";
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map([&list], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        match rows {
            Some(rows) => rows.iter().map(|row| self.parse(row)).collect(),
            None => {
                let unknown: BTreeSet<_> = self.ask_validity(paths)?.into_iter().collect();
                Ok(paths.iter().filter(|path| !unknown.contains(*path)).cloned().collect())
            }
        }
    }

    /// What is known of these paths, in no order; those that are not valid are left out.
    pub fn infos(&self, paths: &[StorePath]) -> Result<Vec<PathInfo>, StoreError> {
        let list = json(paths);
        match self.query(|db| Ok((rows(db, &list)?, references(db, &list)?)))? {
            Some((rows, references)) => self.parse_rows(rows, references),
            None => self.ask_infos(paths),
        }
    }

    fn parse_rows(
        &self,
        rows: Vec<Row>,
        references: Vec<(String, String)>,
    ) -> Result<Vec<PathInfo>, StoreError> {
        let mut by_referrer: BTreeMap<String, BTreeSet<StorePath>> = BTreeMap::new();
        for (referrer, reference) in references {
            by_referrer.entry(referrer).or_default().insert(self.parse(&reference)?);
        }
        let info = |row: Row| {
            let references = by_referrer.remove(&row.path).unwrap_or_default();
            let signatures = row.signatures.unwrap_or_default();
            let missing = |what: &str| self.damaged(format!("{} has no usable {what}", row.path));
            Ok(PathInfo {
                path: self.parse(&row.path)?,
                nar_hash: row.hash.parse().map_err(|_| missing("hash"))?,
                nar_size: row.nar_size.and_then(|n| n.try_into().ok()).ok_or_else(|| missing("size"))?,
                references: references.into_iter().collect(),
                deriver: row.deriver.filter(|text| !text.is_empty()).map(|d| self.parse(&d)).transpose()?,
                ca: row.ca.filter(|text| !text.is_empty()),
                signatures: signatures.split_whitespace().map(str::to_owned).collect(),
            })
        };
        rows.into_iter().map(info).collect()
    }

    /// From `nix-store --dump-db`: for each path its name, hash, size, deriver or an empty line, the number of its
    /// references, and these.
    fn ask_infos(&self, paths: &[StorePath]) -> Result<Vec<PathInfo>, StoreError> {
        let lines = self.ask(&["--dump-db"], paths)?;
        let mut lines = lines.into_iter();
        let mut infos = Vec::new();
        while let Some(path) = lines.next() {
            let mut field =
                || lines.next().ok_or_else(|| self.damaged("nix-store --dump-db ends early".to_owned()));
            let (hash, size, deriver, count) = (field()?, field()?, field()?, field()?);
            let odd = |text: &str| self.damaged(format!("nix-store --dump-db says {text:?} of {path}"));
            let references: Result<BTreeSet<_>, _> = (0..count.parse::<usize>().map_err(|_| odd(&count))?)
                .map(|_| self.parse(&field()?))
                .collect();
            infos.push(PathInfo {
                path: self.parse(&path)?,
                nar_hash: format!("sha256:{hash}").parse().map_err(|_| odd(&hash))?,
                nar_size: size.parse().map_err(|_| odd(&size))?,
                references: references?.into_iter().collect(),
                deriver: (!deriver.is_empty()).then(|| self.parse(&deriver)).transpose()?,
                ca: None,
                signatures: Vec::new(),
            });
        }
        Ok(infos)
    }

    fn damaged(&self, message: String) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), message }
    }
}

fn json(paths: &[StorePath]) -> String {
    let texts: Vec<String> = paths.iter().map(StorePath::to_string).collect();
    serde_json::to_string(&texts).expect("plain text")
}

fn rows(db: &Connection, list: &str) -> rusqlite::Result<Vec<Row>> {
    let mut statement = db.prepare_cached(
        "SELECT path, hash, narSize, deriver, sigs, ca FROM ValidPaths
         WHERE path IN (SELECT value FROM json_each(?))",
    )?;
    let rows = statement.query_map([list], |row| {
        Ok(Row {
            path: row.get(0)?,
            hash: row.get(1)?,
            nar_size: row.get(2)?,
            deriver: row.get(3)?,
            signatures: row.get(4)?,
            ca: row.get(5)?,
        })
    })?;
    rows.collect()
}

fn references(db: &Connection, list: &str) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = db.prepare_cached(
        "SELECT a.path, b.path FROM ValidPaths a JOIN Refs ON referrer = a.id JOIN ValidPaths b ON b.id = reference
         WHERE a.path IN (SELECT value FROM json_each(?))",
    )?;
    let rows = statement.query_map([list], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}
