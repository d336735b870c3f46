//! A cache that holds a million paths: how long it takes to start, and to find one of them.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use calve_nix::{Sha256Hash, base32};
use rusqlite::{Connection, params};

use super::Bench;
use super::make::Maker;
use super::server::Server;
use crate::home::Home;
use crate::table::Table;
use crate::times::{Times, millis};

/// Starts of a cache.
const STARTS: usize = 9;
const LOOKUPS: usize = 10_000;
/// Most that a lookup may take for 99 of 100, in milliseconds.
const LOOKUP_MOST_MS: f64 = 5.0;
/// A start among many paths, of one among few: as much as measurements differ.
const START_MOST: f64 = 1.5;

impl Bench {
    pub(super) fn stored(&mut self, table: &mut Table) -> anyhow::Result<()> {
        let count = self.size.stored_paths;
        let home = Arc::new(Home::new()?);
        let made = Maker::new(&self.nix)?.many_paths("stored", 2, 4 << 10, 0)?;
        let server = Server::start_in(home.clone())?;
        super::engine::call("push", &self.nix, (&server, &server.url), &made.root, 1)?;
        drop(server);
        let few = starts(&home)?;
        let hash_parts = fill(&home.path().join("cache/index.sqlite"), made.root.hash_part(), count)?;
        let many = starts(&home)?;
        let ratio = many.median().as_secs_f64() / few.median().as_secs_f64();
        table.ratio(
            &format!("start of a cache with {count} paths"),
            millis(many.median()),
            format!("with 2 {}", millis(few.median())),
            ratio,
            Some(START_MOST),
        );
        let times = lookups(&Server::start_in(home)?, &hash_parts)?;
        let p99 = times.quantile(99);
        let shown = format!("p50 {}, p99 {}", millis(times.median()), millis(p99));
        let what = format!("lookup of one of {count} paths by HTTP");
        table.limit(&what, shown, p99.as_secs_f64() * 1000.0, LOOKUP_MOST_MS, "ms");
        Ok(())
    }
}

fn starts(home: &Arc<Home>) -> anyhow::Result<Times> {
    let mut times = Times::new();
    for _ in 0..STARTS {
        times.push(Server::start_in(home.clone())?.started);
    }
    Ok(times)
}

/// Adds `count` paths like the one with this hash part, each with three references, behind the cache's back: to upload so
/// many would take an hour. Gives their hash parts.
fn fill(index: &Path, like: &str, count: usize) -> anyhow::Result<Vec<String>> {
    let mut index = Connection::open(index)?;
    index.execute_batch("PRAGMA synchronous = off; PRAGMA cache_size = -500000; DROP INDEX referrers;")?;
    let transaction = index.transaction()?;
    let sql = "SELECT manifest, recipe, pack, used_ms FROM paths WHERE hash_part = ?1";
    let (manifest, recipe, pack, used_ms) = transaction.query_row(sql, [like], |row| {
        Ok((
            row.get::<_, Vec<u8>>(0)?,
            row.get::<_, Vec<u8>>(1)?,
            row.get::<_, i64>(2)?,
            row.get::<_, i64>(3)?,
        ))
    })?;
    let at = manifest.windows(like.len()).position(|part| part == like.as_bytes());
    let at = at.context("a manifest that names its path")?;
    // In the order of their hashes: that fills the index's tree from left to right.
    let mut hash_parts: Vec<_> =
        (0..count as u64).map(|n| base32::encode(&Sha256Hash::of(&n.to_le_bytes()).compressed())).collect();
    hash_parts.sort_unstable();
    {
        let sql =
            "INSERT INTO paths (hash_part, manifest, recipe, pack, used_ms) VALUES (?1, ?2, ?3, ?4, ?5)";
        let mut insert = transaction.prepare(sql)?;
        let mut refer =
            transaction.prepare("INSERT OR IGNORE INTO refs (path, reference) VALUES (?1, ?2)")?;
        let mut manifest = manifest;
        for hash_part in &hash_parts {
            manifest[at..at + like.len()].copy_from_slice(hash_part.as_bytes());
            insert.execute(params![hash_part, manifest, recipe, pack, used_ms])?;
            let path = transaction.last_insert_rowid();
            for reference in [2, 3, 5].map(|divisor| (path / divisor).max(1)) {
                refer.execute([path, reference])?;
            }
        }
    }
    transaction.commit()?;
    index.execute_batch(
        "CREATE INDEX referrers ON refs (reference, path); PRAGMA wal_checkpoint(truncate);",
    )?;
    Ok(hash_parts)
}

/// One after the other over one connection, as Nix asks.
fn lookups(server: &Server, hash_parts: &[String]) -> anyhow::Result<Times> {
    let stream = TcpStream::connect(("127.0.0.1", server.port()))?;
    stream.set_nodelay(true)?;
    let (mut out, mut input) = (stream.try_clone()?, BufReader::new(stream));
    let mut times = Times::new();
    for n in 0..LOOKUPS {
        let hash_part = &hash_parts[n * 7919 % hash_parts.len()];
        let begun = Instant::now();
        out.write_all(format!("GET /{hash_part}.narinfo HTTP/1.1\r\nHost: cache\r\n\r\n").as_bytes())?;
        let text = answer(&mut input)?;
        times.push(begun.elapsed());
        ensure!(text.contains(hash_part), "not the path that was asked for: {text}");
    }
    Ok(times)
}

fn answer(input: &mut impl BufRead) -> anyhow::Result<String> {
    let mut length = 0;
    let mut line = String::new();
    input.read_line(&mut line)?;
    ensure!(line.contains(" 200 "), "{line}");
    while !line.trim().is_empty() {
        line.clear();
        input.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    Ok(String::from_utf8(body)?)
}
