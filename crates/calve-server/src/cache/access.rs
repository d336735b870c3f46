//! Who asks, and what they may see of the cache.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use calve_nix::StorePath;
use calve_store::chunk::ChunkId;
use calve_store::remote::{Remote, RemoteError};

use super::answer::{Answered, Refusal};
use super::tokens::{Right, Tokens};

/// Closures of tokens that are remembered; further ones are worked out anew.
const CLOSURES_MAX: usize = 16;
/// How long a closure is remembered that was not all there yet.
const INCOMPLETE_FOR: Duration = Duration::from_secs(1);

/// Whether a cache may be read without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// Everybody may pull.
    Public,
    /// Only with a token.
    Private,
    /// Everybody may pull and push: who gets so far was let in before.
    Open,
}

/// Decides who may do what.
pub struct Gate {
    visibility: Visibility,
    tokens: Tokens,
    closures: Mutex<Vec<Known>>,
}

/// A closure that was worked out.
struct Known {
    roots: Vec<StorePath>,
    /// Until when it counts, where it was not all there.
    until: Option<Instant>,
    closure: Arc<Closure>,
}

/// What somebody may see.
#[derive(Debug, Clone)]
pub enum Sight {
    /// Everything.
    All,
    /// A closure alone.
    Closure(Arc<Closure>),
}

/// The paths of a closure, and the chunks and recipes that they are made of.
#[derive(Debug, Default)]
pub struct Closure {
    hash_parts: HashSet<String>,
    chunks: HashSet<ChunkId>,
}

impl Gate {
    /// A gate with the tokens of a cache.
    pub fn new(visibility: Visibility, tokens: Tokens) -> Self {
        Self { visibility, tokens, closures: Mutex::default() }
    }

    /// Whether whoever sent these headers may add paths.
    pub fn push(&self, headers: &HeaderMap) -> Answered<()> {
        if self.visibility == Visibility::Open {
            return Ok(());
        }
        match self.right(headers)? {
            Some(Right::Push) => Ok(()),
            Some(Right::Pull | Right::Closure(_)) => Err(Refusal::forbidden("this token may not push")),
            None => Err(Refusal::unauthorized()),
        }
    }

    /// What whoever sent these headers may read.
    pub async fn pull(&self, headers: &HeaderMap, remote: &dyn Remote) -> Answered<Sight> {
        if self.visibility == Visibility::Open {
            // Not even the tokens are looked at: the secret that let somebody in need not be one of them.
            return Ok(Sight::All);
        }
        match (self.right(headers)?, self.visibility) {
            (Some(Right::Push | Right::Pull), _) | (None, Visibility::Public | Visibility::Open) => {
                Ok(Sight::All)
            }
            // A wrong token is no worse than none.
            (Some(Right::Closure(_)), Visibility::Public | Visibility::Open) => Ok(Sight::All),
            (Some(Right::Closure(roots)), Visibility::Private) => {
                Ok(Sight::Closure(self.closure(roots, remote).await?))
            }
            (None, Visibility::Private) => Err(Refusal::unauthorized()),
        }
    }

    fn right(&self, headers: &HeaderMap) -> Answered<Option<Right>> {
        let Some(said) = token_of(headers) else { return Ok(None) };
        let found = self.tokens.find(&said).map_err(|error| {
            // Not for strangers: it names files.
            tracing::error!("the tokens cannot be used: {}", crate::chain(&error));
            let plain = std::io::Error::other("see the cache's own log");
            Refusal::failed("the cache cannot read its tokens", &plain)
        })?;
        Ok(found.map(|token| token.right))
    }

    async fn closure(&self, roots: Vec<StorePath>, remote: &dyn Remote) -> Answered<Arc<Closure>> {
        if let Some(known) = self.known(&roots) {
            return Ok(known);
        }
        let (closure, until) = match work_out(&roots, remote).await {
            Ok(closure) => (Arc::new(closure), None),
            // Not pushed yet: nothing of it is there to be seen.
            Err(RemoteError::Missing { .. }) => (Arc::default(), Some(Instant::now() + INCOMPLETE_FOR)),
            Err(error) => return Err(error.into()),
        };
        let mut closures = self.closures.lock().unwrap_or_else(PoisonError::into_inner);
        closures.retain(|known| known.roots != roots);
        if closures.len() >= CLOSURES_MAX {
            closures.remove(0);
        }
        closures.push(Known { roots, until, closure: closure.clone() });
        Ok(closure)
    }

    fn known(&self, roots: &[StorePath]) -> Option<Arc<Closure>> {
        let closures = self.closures.lock().unwrap_or_else(PoisonError::into_inner);
        let known = closures.iter().find(|known| known.roots == roots)?;
        known.until.is_none_or(|until| Instant::now() < until).then(|| known.closure.clone())
    }
}

async fn work_out(roots: &[StorePath], remote: &dyn Remote) -> Result<Closure, RemoteError> {
    let manifests = remote.closure(roots).await?;
    let ids: Vec<_> = manifests.iter().map(|manifest| manifest.recipe).collect();
    let recipes = remote.recipes(&ids).await?;
    let pieces = recipes.iter().flat_map(|recipe| recipe.pieces.iter().map(|piece| piece.id));
    Ok(Closure {
        hash_parts: manifests.iter().map(|manifest| manifest.info.path.hash_part().to_owned()).collect(),
        chunks: pieces.chain(ids.iter().copied()).collect(),
    })
}

impl Sight {
    /// Whether the path with this hash part may be seen.
    pub fn has_hash_part(&self, hash_part: &str) -> bool {
        match self {
            Self::All => true,
            Self::Closure(closure) => closure.hash_parts.contains(hash_part),
        }
    }

    /// Whether the path may be seen.
    pub fn has_path(&self, path: &StorePath) -> bool {
        self.has_hash_part(path.hash_part())
    }

    /// Whether the chunk or recipe may be seen.
    pub fn has_chunk(&self, id: &ChunkId) -> bool {
        match self {
            Self::All => true,
            Self::Closure(closure) => closure.chunks.contains(id),
        }
    }

    /// Whether everything may be seen.
    pub fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }
}

/// The token of a request: `Bearer TOKEN`, or the password of `Basic`, as Nix sends what stands in a netrc file.
pub fn token_of(headers: &HeaderMap) -> Option<String> {
    let said = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, value) = said.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.trim().to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair = String::from_utf8(STANDARD.decode(value.trim()).ok()?).ok()?;
        return pair.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_taken_from_both_schemes() {
        let token = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, text.parse().unwrap());
            token_of(&headers)
        };
        assert_eq!(token("Bearer t").as_deref(), Some("t"));
        assert_eq!(token(&format!("basic {}", STANDARD.encode("anybody:t:u"))).as_deref(), Some("t:u"));
        for bad in ["Bearer", "Basic !", "Digest t", ""] {
            assert_eq!(token(bad), None, "{bad}");
        }
    }
}
