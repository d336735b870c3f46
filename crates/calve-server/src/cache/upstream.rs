//! Other caches that are asked for what this one does not have, in Nix's protocol. What they give is used only if a trusted
//! key signed it, and lies here from then on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use calve_nix::narinfo::NARINFO_MAX_BYTES;
use calve_nix::store_path::HASH_CHARS;
use calve_nix::{NarInfo, TrustedKeys};
use calve_store::cache::{Cache, CacheError};
use calve_store::http::{Address, Client, ProblemKind};
use calve_store::remote::RemoteError;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;

use super::answer::{Answered, Refusal};
use super::nix::path_info;

/// How long an upstream may take to say whether it has a path; the others are asked at the same time.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long an upstream is left alone that did not answer.
const MUTED_FOR: Duration = Duration::from_secs(30);
/// Archives that are fetched at once: each is a file here until it is stored.
const FETCHED_AT_ONCE: usize = 8;

/// The caches behind this one.
pub struct Upstreams {
    all: Vec<Upstream>,
    trusted: TrustedKeys,
    /// What is being fetched.
    flights: Mutex<HashMap<String, Flight>>,
    room: Semaphore,
}

/// A path on its way; clones wait for the same.
pub type Flight = Shared<BoxFuture<'static, Answered<bool>>>;

struct Upstream {
    client: Client,
    muted_until: Mutex<Option<Instant>>,
}

/// The address of an upstream that did not answer, now or a moment ago.
struct NoAnswer(String);

/// A path that an upstream has.
struct Found {
    nar_info: NarInfo,
    client: Client,
}

impl Upstreams {
    /// Caches at these addresses; paths count that one of the keys signed. Nobody is asked yet.
    pub fn new(addresses: Vec<Address>, trusted: TrustedKeys) -> Result<Self, RemoteError> {
        let upstream =
            |address| Ok(Upstream { client: Client::new(address, None)?, muted_until: Mutex::default() });
        let all = addresses.into_iter().map(upstream).collect::<Result<_, RemoteError>>()?;
        Ok(Self { all, trusted, flights: Mutex::default(), room: Semaphore::new(FETCHED_AT_ONCE) })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What the first upstream to answer says of the path with this hash part, signed by a trusted key. Refused where none
    /// has it and one does not answer: it may have it.
    pub async fn nar_info(&self, hash_part: &str) -> Answered<Option<NarInfo>> {
        Ok(self.find(hash_part).await?.map(|found| found.nar_info))
    }

    async fn find(&self, hash_part: &str) -> Answered<Option<Found>> {
        let mut mute = Vec::new();
        let mut asked: FuturesUnordered<_> =
            self.all.iter().map(|upstream| upstream.ask(hash_part, &self.trusted)).collect();
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(NoAnswer(shown)) => mute.push(shown),
            }
        }
        if mute.is_empty() {
            return Ok(None);
        }
        mute.sort_unstable();
        let message = format!("it is not here, and {} does not answer", mute.join(" and "));
        Err(Refusal::new(StatusCode::BAD_GATEWAY, ProblemKind::Failed, message))
    }

    /// Fetches the path with this hash part, after everything that it refers to and the cache lacks. Gives whether an
    /// upstream has it. However many ask, a path is fetched once.
    pub fn fetch(self: &Arc<Self>, cache: &Cache, hash_part: &str) -> Flight {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(hash_part) {
            return flight.clone();
        }
        let (this, cache, part) = (self.clone(), cache.clone(), hash_part.to_owned());
        // A task of its own: who asked first may go, and others wait for it too.
        let task = tokio::spawn(async move {
            let fetched = this.fetch_one(&cache, &part).await;
            this.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&part);
            fetched
        });
        let ended =
            task.map(|ended| ended.unwrap_or_else(|error| Err(Refusal::failed("a fetch ended", &error))));
        let flight = ended.boxed().shared();
        flights.insert(hash_part.to_owned(), flight.clone());
        flight
    }

    async fn fetch_one(self: &Arc<Self>, cache: &Cache, hash_part: &str) -> Answered<bool> {
        let known = cache.find(hash_part).await;
        if known.map_err(|error| Refusal::from(error.into_remote("calve")))?.is_some() {
            return Ok(true);
        }
        let Some(found) = self.find(hash_part).await? else { return Ok(false) };
        let path = &found.nar_info.store_path;
        let references: Vec<_> = found.nar_info.references.iter().filter(|it| *it != path).collect();
        let flights = references.iter().map(|reference| self.fetch(cache, reference.hash_part()));
        for (fetched, reference) in futures_util::future::join_all(flights).await.into_iter().zip(references)
        {
            if !fetched? {
                return Err(Refusal::missing(reference.to_string()));
            }
        }
        let _room = self.room.acquire().await.expect("the semaphore is never closed");
        store(cache, found).await?;
        Ok(true)
    }
}

/// Fetches one archive and stores it as that of its path, whose references are all there.
async fn store(cache: &Cache, found: Found) -> Answered<()> {
    let Found { nar_info, client } = found;
    let failed = |error: CacheError| Refusal::from(error.into_remote(client.shown()));
    let answer = client.get(&format!("/{}", nar_info.url)).await?;
    let parts = stream::try_unfold(answer.body, |mut body| async move {
        Ok::<_, RemoteError>(body.next().await?.map(|part| (part, body)))
    });
    // No client can choose such a name for what it uploads.
    let name = format!("upstream-{}", nar_info.store_path.hash_part());
    cache.stage_nar(&name, parts).await.map_err(failed)?;
    let (path, compression) = (nar_info.store_path.to_string(), nar_info.compression);
    cache.put_nar(&name, compression, path_info(nar_info)).await.map_err(|error| {
        tracing::warn!("{path} of {} was refused: {}", client.shown(), crate::chain(&error));
        failed(error)
    })?;
    tracing::info!("{path} came from {}", client.shown());
    Ok(())
}

impl Upstream {
    async fn ask(&self, hash_part: &str, trusted: &TrustedKeys) -> Result<Option<Found>, NoAnswer> {
        debug_assert_eq!(hash_part.len(), HASH_CHARS);
        if self.is_muted() {
            return Err(NoAnswer(self.client.shown().to_owned()));
        }
        let asking = async {
            let answer = self.client.get(&format!("/{hash_part}.narinfo")).await?;
            answer.body.collect(NARINFO_MAX_BYTES).await
        };
        let bytes = match tokio::time::timeout(ANSWER_MAX, asking).await {
            Ok(Ok(bytes)) => bytes,
            // S3 behind some caches answers 403 for what is not there.
            Ok(Err(RemoteError::Missing { .. } | RemoteError::Denied { .. })) => return Ok(None),
            Ok(Err(error)) => return Err(self.mute(&crate::chain(&error))),
            Err(_) => return Err(self.mute(&format!("no answer within {} s", ANSWER_MAX.as_secs()))),
        };
        let checked = NarInfo::from_bytes(&bytes).map_err(|error| error.to_string()).and_then(|nar_info| {
            if nar_info.store_path.hash_part() != hash_part {
                return Err(format!("it is about {}", nar_info.store_path));
            }
            nar_info.verify(trusted).map_err(|error| error.to_string())?;
            Ok(nar_info)
        });
        match checked {
            Ok(nar_info) => Ok(Some(Found { nar_info, client: self.client.clone() })),
            Err(why) => {
                tracing::warn!("{hash_part}.narinfo of {} is not used: {why}", self.client.shown());
                Ok(None)
            }
        }
    }

    fn is_muted(&self) -> bool {
        let until = self.muted_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn mute(&self, why: &str) -> NoAnswer {
        tracing::warn!("{} is left alone for {} s: {why}", self.client.shown(), MUTED_FOR.as_secs());
        let mut until = self.muted_until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = Some(Instant::now() + MUTED_FOR);
        NoAnswer(self.client.shown().to_owned())
    }
}
