//! What lets single blocks be believed.
//!
//! Nix's signature covers the hash of a whole archive, which says nothing of a part of it. A cache that has hashed an archive
//! knows that its recipe and its listing belong to it, and signs that, with the key that it signs paths with. Then each
//! chunk counts for its id in that recipe.

use calve_nix::sign::{Signature, TrustedKeys, VerifyError, fingerprint};
use serde::{Deserialize, Serialize};

use crate::PathInfo;
use crate::recipe::RecipeId;

/// Most signatures of one proof: each cache that a path passes makes its own anew, so that one is usual.
pub const PROOF_SIGNATURES_MAX: usize = 8;

/// That a recipe and a listing belong to a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The recipe of the path's listing ([`super::Tree::cut`]).
    pub listing: RecipeId,
    /// Signatures over [`Proof::text`], `<key name>:<base64>`.
    pub signatures: Vec<String>,
}

impl Proof {
    /// What is signed: everything that a path's signature says, with the recipe and the listing. The references are in it,
    /// because a recipe puts their hash parts into the bytes.
    pub fn text(info: &PathInfo, recipe: &RecipeId, listing: &RecipeId) -> String {
        let references = info.references.iter().cloned().collect();
        let path = fingerprint(&info.path, &info.nar_hash, info.nar_size, &references);
        format!("calve-lazy-1;{recipe};{listing};{path}")
    }

    /// Whether a trusted key has signed it.
    pub fn verify(
        &self,
        info: &PathInfo,
        recipe: &RecipeId,
        trusted: &TrustedKeys,
    ) -> Result<(), VerifyError> {
        let signatures = self.signatures.iter().take(PROOF_SIGNATURES_MAX);
        let signatures: Vec<Signature> = signatures.filter_map(|text| text.parse().ok()).collect();
        trusted.verify(&Self::text(info, recipe, &self.listing), &signatures).map(drop)
    }
}
