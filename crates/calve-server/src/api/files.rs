//! `/v1/machines/{name}/files`: files into and out of a running machine, as tar archives.

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use calve_wire::agent::Target;
use calve_wire::api::{Problem, ProblemKind};
use calve_wire::event::What;
use calve_wire::frame::Channel;
use calve_wire::machine::Exit;
use futures_util::StreamExt;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Named, Params};
use super::problem::{ApiError, ApiResult};
use super::{Api, Principal};
use crate::agents::{AgentStream, LinkError, StreamEvent};

/// Longest path, in bytes (`PATH_MAX`, path_resolution(7)).
const PATH_MAX_BYTES: usize = 4095;
/// The exit code that tells a missing path ([`calve_wire::agent::FromAgent::StreamFailed`]).
const NOT_FOUND_CODE: i32 = 127;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct FilesParams {
    /// Absolute path in the machine.
    path: String,
}

/// A tar archive of a file or directory in the machine.
#[utoipa::path(get, path = "/v1/machines/{name}/files",
    params(("name" = String, Path, description = "Name or id"), FilesParams), responses(
    (status = 200, body = Vec<u8>, content_type = "application/x-tar"), (status = "default", body = Problem)))]
pub async fn read(
    State(api): State<Api>,
    by: Principal,
    Named(name): Named,
    Params(FilesParams { path }): Params<FilesParams>,
) -> ApiResult<Response> {
    check(&path)?;
    let record = api.reach(&name).await?;
    let mut stream = api.world.agents().open(record.id, Target::Read { path: path.clone() })?;
    stream.close_stdin().await?;
    // The first piece tells whether there is anything to read, while a status can still say so.
    let first = next(&mut stream).await?;
    api.audit(&by, &record, What::Copied { path, into: false });
    let pieces = futures_util::stream::unfold((stream, first), async |(mut stream, piece)| {
        let piece = piece?;
        match next(&mut stream).await {
            Ok(following) => Some((Ok(piece), (stream, following))),
            Err(error) => Some((Err(error.0), (stream, None))),
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(pieces)).into_response())
}

/// Unpacks a tar archive into an existing directory in the machine.
#[utoipa::path(put, path = "/v1/machines/{name}/files",
    params(("name" = String, Path, description = "Name or id"), FilesParams),
    request_body(content = Vec<u8>, content_type = "application/x-tar"), responses(
    (status = 204, description = "Unpacked"), (status = "default", body = Problem)))]
pub async fn write(
    State(api): State<Api>,
    by: Principal,
    Named(name): Named,
    Params(FilesParams { path }): Params<FilesParams>,
    request: Request,
) -> ApiResult<StatusCode> {
    check(&path)?;
    let record = api.reach(&name).await?;
    let (sender, mut receiver) =
        api.world.agents().open(record.id, Target::Write { path: path.clone() })?.split();
    let mut pieces = request.into_body().into_data_stream();
    let sending = async {
        while let Some(piece) = pieces.next().await {
            let piece =
                piece.map_err(|error| ApiError::bad_request(format!("the archive broke off: {error}")))?;
            match sender.send(&piece).await {
                // Why, is told by the other direction.
                Err(LinkError::StreamClosed) => return Ok(()),
                result => result?,
            }
        }
        match sender.close_stdin().await {
            Ok(()) | Err(LinkError::StreamClosed) => Ok(()),
            Err(error) => Err(ApiError::from(error)),
        }
    };
    let ended = async {
        loop {
            match receiver.recv().await {
                Some(StreamEvent::Data(..)) => {}
                Some(StreamEvent::Ended(_)) | None => return Ok(()),
                Some(StreamEvent::Failed { message, exit }) => return Err(refused(message, exit)),
            }
        }
    };
    // The end counts, not the sending: the machine may refuse the archive before all of it was sent.
    let (sent, ended) = futures_util::future::join(sending, ended).await;
    ended.and(sent)?;
    api.audit(&by, &record, What::Copied { path, into: true });
    Ok(StatusCode::NO_CONTENT)
}

fn check(path: &str) -> ApiResult<()> {
    if path.starts_with('/') && !path.contains('\0') && path.len() <= PATH_MAX_BYTES {
        return Ok(());
    }
    Err(ApiError::bad_request("`path` must be an absolute path of at most 4095 bytes in the machine"))
}

/// The next piece of an archive; none at its end.
async fn next(stream: &mut AgentStream) -> ApiResult<Option<Bytes>> {
    loop {
        match stream.recv().await {
            Some(StreamEvent::Data(Channel::Stdout, bytes)) if !bytes.is_empty() => return Ok(Some(bytes)),
            Some(StreamEvent::Data(..)) => {}
            Some(StreamEvent::Ended(_)) | None => return Ok(None),
            Some(StreamEvent::Failed { message, exit }) => return Err(refused(message, exit)),
        }
    }
}

fn refused(message: String, exit: Option<Exit>) -> ApiError {
    let missing = exit.is_some_and(|exit| exit.code == Some(NOT_FOUND_CODE));
    ApiError::new(if missing { ProblemKind::NotFound } else { ProblemKind::BadRequest }, message)
}
