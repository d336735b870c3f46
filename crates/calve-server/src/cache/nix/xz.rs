//! Archives as xz, for clients that remember a narinfo of their own upload.

use std::io::Write;

use bytes::Bytes;
use calve_store::cache::CacheError;
use futures_util::stream::{self, BoxStream, StreamExt};
use liblzma::write::XzEncoder;

use crate::cache::blocking;

/// The fastest level: it is sent once, and waited for.
const LEVEL: u32 = 0;

/// The same bytes, compressed.
pub fn compress(
    archive: BoxStream<'static, Result<Bytes, CacheError>>,
) -> BoxStream<'static, Result<Bytes, CacheError>> {
    let encoder = XzEncoder::new(Vec::new(), LEVEL);
    let packed = stream::try_unfold((archive, Some(encoder)), |(mut archive, encoder)| async move {
        let Some(mut encoder) = encoder else { return Ok(None) };
        match archive.next().await.transpose()? {
            Some(bytes) => {
                let (packed, encoder) = blocking(move || {
                    encoder.write_all(&bytes).expect("writing into memory does not fail");
                    (std::mem::take(encoder.get_mut()), encoder)
                })
                .await;
                Ok(Some((Bytes::from(packed), (archive, Some(encoder)))))
            }
            None => {
                let last = encoder.finish().expect("writing into memory does not fail");
                Ok(Some((Bytes::from(last), (archive, None))))
            }
        }
    });
    packed.filter(|bytes| std::future::ready(!matches!(bytes, Ok(bytes) if bytes.is_empty()))).boxed()
}
