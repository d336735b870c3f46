//! Parsing requests at the edge: every refusal is a problem that names the field.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::CONTENT_LENGTH;
use axum::http::request::Parts;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use super::problem::ApiError;
use calve_core::limits::ENV_MAX_BYTES;

/// Largest JSON body: an environment and arguments of [`ENV_MAX_BYTES`] in which every byte needs six for its escape,
/// and room for the rest.
pub const BODY_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Most bytes of a body that is refused all the same which are read before the answer: a client that is still sending
/// would see a broken connection instead of the reason.
const REFUSED_BODY_READ_BYTES: usize = 64 * 1024 * 1024;

/// A JSON body; an empty one counts as `{}`.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read_body(request).await?;
        let json: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(json).map(Self).map_err(|error| {
            ApiError::bad_request(format!("the request's body does not parse: {error}"))
                .hint("GET /v1/openapi.json describes every body")
        })
    }
}

async fn read_body(request: Request) -> Result<Bytes, ApiError> {
    let claimed = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut bytes = Vec::with_capacity(claimed.unwrap_or(0).min(64 * 1024));
    let mut read = 0;
    let mut chunks = request.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk =
            chunk.map_err(|error| ApiError::bad_request(format!("the request's body broke off: {error}")))?;
        read += chunk.len();
        if read <= BODY_MAX_BYTES {
            bytes.extend_from_slice(&chunk);
        } else if read > REFUSED_BODY_READ_BYTES {
            break;
        }
    }
    if read > BODY_MAX_BYTES {
        return Err(ApiError::bad_request(format!("the request's body has over {BODY_MAX_BYTES} bytes"))
            .hint(format!("a program's environment and arguments may have {ENV_MAX_BYTES} bytes together")));
    }
    Ok(bytes.into())
}

/// The machine's name or id in the URL's path, as it was said.
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        name.map(|Path(name)| Self(name)).map_err(|error| {
            ApiError::bad_request(format!("the machine's name does not parse: {}", error.body_text()))
        })
    }
}

/// The query of the URL; unknown parameters are refused by `T`.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = Query::<T>::try_from_uri(&parts.uri);
        query.map(|Query(params)| Self(params)).map_err(|error| {
            ApiError::bad_request(format!("the URL's parameters do not parse: {}", crate::chain(&error)))
                .hint("GET /v1/openapi.json describes them")
        })
    }
}
