//! Making paths whole whose chunks were lost: found damaged by an earlier look, when there was no other cache to ask.

use calve_nix::StorePath;
use futures_util::StreamExt;

use super::index::paths;
use super::pack::{Kind, PackWriter};
use super::verify::{Damage, fetch_recipe};
use super::write::Origin;
use super::{Cache, CacheError, manifest};
use crate::recipe::RecipeId;
use crate::remote::Remote;

/// Chunks that are fetched in one request: some 32 MB at most, which are in memory together.
const CHUNKS_AT_ONCE: usize = 128;

impl Cache {
    /// Fetches what paths known as broken lack from another cache; those that are whole then are shown again.
    pub(super) async fn heal(&self, remote: &dyn Remote) -> Result<Vec<Damage>, CacheError> {
        let broken = |index: &rusqlite::Connection| {
            let mut statement = index.prepare("SELECT path, manifest, recipe FROM paths WHERE broken")?;
            let rows = statement.query_map([], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, crate::chunk::ChunkId(row.get(2)?)))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let mut healed = Vec::new();
        for (number, bytes, recipe) in self.0.index.read(broken).await? {
            let Ok(manifest) = manifest::decode(&bytes) else { continue };
            if self.fetch_lost(remote, recipe).await? {
                self.0.index.write(move |index| Ok(paths::set_broken(index, number, false)?)).await?;
                healed.push(self.was_lost(manifest.info.path));
            }
        }
        Ok(healed)
    }

    fn was_lost(&self, path: StorePath) -> Damage {
        Damage {
            what: path.to_string(),
            object: self.storage().to_owned(),
            message: "chunks of it were lost".to_owned(),
            repaired: true,
        }
    }

    /// Fetches a recipe and its chunks as far as they are not there; gives whether they are now.
    async fn fetch_lost(&self, remote: &dyn Remote, id: RecipeId) -> Result<bool, CacheError> {
        let recipe = match self.read_recipes(vec![id]).await {
            Ok(mut recipes) => recipes.remove(0),
            Err(CacheError::Missing(_) | CacheError::Damaged { .. }) => {
                let Some((stored, recipe)) = fetch_recipe(remote, id).await else { return Ok(false) };
                let mut pack = PackWriter::new();
                pack.push(Kind::Recipe, &stored);
                self.store_pack(pack).await?;
                recipe
            }
            Err(error) => return Err(error),
        };
        let ids: Vec<_> = recipe.pieces.iter().map(|piece| piece.id).collect();
        for lost in self.missing_now(&ids)?.chunks(CHUNKS_AT_ONCE) {
            let Ok(mut answer) = remote.chunks(lost.to_vec()).await else { return Ok(false) };
            let mut fetched = Vec::with_capacity(lost.len());
            while let Some(Ok(chunk)) = answer.next().await {
                fetched.push(chunk);
            }
            match self.store_chunks(fetched, Origin::Elsewhere).await {
                Err(CacheError::Damaged { .. }) => return Ok(false),
                stored => stored?,
            }
        }
        Ok(self.missing_now(&ids)?.is_empty())
    }
}
