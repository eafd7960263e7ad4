//! The REST interface: operators by their client certificates, JSON, described by itself.
//!
//! `/api/v1/…` needs an operator's certificate; `/api/openapi.json` describes it. Errors are
//! `{"error": {"code", "message", "remedy", "details"}}`.

mod devices;
mod extract;
mod fleet;
mod policy;
mod sites;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Extension, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use hedgerow_identity::certificate::{PeerIdentity, RefusedCertificate, SpiffeId};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::control::Controller;
use crate::refusal::{Kind, Refusal};

/// Longest request body, in bytes: a policy file.
const BODY_BYTES_MAX: usize = hedgerow_policy::POLICY_BYTES_MAX;
/// Most headers of one request.
const HEADERS_MAX: usize = 64;
/// How long a client may take to send the head of a request.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// Longest answer, waiting for a rollout included.
const ANSWER_WITHIN: Duration = Duration::from_secs(330);

/// What every handler can reach.
pub(crate) type Shared = Arc<Controller>;

/// Who opened the connection, by the certificate TLS proved. Never by a header.
#[derive(Debug, Clone)]
pub(crate) struct Caller(Arc<Result<String, Refusal>>);

impl Caller {
    /// Takes what was found out about the client's certificate.
    pub(crate) fn new(peer: Option<Result<PeerIdentity, RefusedCertificate>>) -> Self {
        let remedy = "use the certificate of an operator, e.g. operator/operator.pem; \
            `hedgerow-control operator renew` on the controller's machine makes a new one";
        let named = match peer {
            None => Err(Refusal::new(
                Kind::Unauthenticated,
                "certificate_required",
                "the client showed no certificate",
                remedy,
            )),
            Some(Err(refused)) => Err(Refusal::new(
                Kind::Forbidden,
                "certificate_refused",
                format!("the client's certificate was refused: {refused}"),
                remedy,
            )),
            Some(Ok(peer)) => match peer.id() {
                SpiffeId::Operator { name } => Ok(name.to_string()),
                SpiffeId::Device { .. }
                | SpiffeId::Controller { .. }
                | SpiffeId::Manager { .. } => Err(Refusal::new(
                    Kind::Forbidden,
                    "not_an_operator",
                    format!("{} is not an operator", peer.id()),
                    remedy,
                )),
            },
        };
        Self(Arc::new(named))
    }

    /// Returns whether an operator's certificate was proven.
    pub(crate) fn is_operator(&self) -> bool {
        self.0.is_ok()
    }

    /// Returns the operator's name; the middleware has refused everybody else.
    pub(crate) fn name(&self) -> &str {
        self.0.as_ref().as_ref().map_or("", String::as_str)
    }
}

/// The body of an error.
#[derive(Debug, Serialize, ToSchema)]
struct ErrorBody {
    error: ErrorContent,
}

/// What went wrong and what to do about it.
#[derive(Debug, Serialize, ToSchema)]
struct ErrorContent {
    /// A stable word for programs.
    code: String,
    /// What, and with which value.
    message: String,
    /// What to do about it.
    remedy: String,
    /// Who has to act: `operator`, `environment` or `bug`.
    fault: String,
    /// Every single finding.
    details: Vec<serde_json::Value>,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.kind {
            Kind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::NeedsConfirmation => StatusCode::PRECONDITION_REQUIRED,
            Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::Busy | Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Bug => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let fault = match self.fault() {
            hedgerow_model::Fault::Operator => "operator",
            hedgerow_model::Fault::Peer => "peer",
            hedgerow_model::Fault::Environment => "environment",
            hedgerow_model::Fault::Bug => "bug",
        };
        let body = ErrorBody {
            error: ErrorContent {
                code: self.code.to_owned(),
                message: self.message,
                remedy: self.remedy,
                fault: fault.to_owned(),
                details: self.details,
            },
        };
        (status, Json(body)).into_response()
    }
}

/// What the description begins with.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Hedgerow controller",
        description = "Operators show a client certificate; errors say code, message and remedy."
    ),
    components(schemas(ErrorBody, ErrorContent))
)]
struct Description;

/// Makes the service and its description.
fn routes() -> (Router<Shared>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
        .routes(routes!(sites::list, sites::create))
        .routes(routes!(sites::update))
        .routes(routes!(devices::list))
        .routes(routes!(devices::pending))
        .routes(routes!(devices::show, devices::remove))
        .routes(routes!(devices::label))
        .routes(routes!(devices::quarantine))
        .routes(routes!(devices::release))
        .routes(routes!(devices::reconnect))
        .routes(routes!(devices::rotate_keys))
        .routes(routes!(devices::revoke))
        .routes(routes!(devices::approve))
        .routes(routes!(devices::reject))
        .routes(routes!(policy::show))
        .routes(routes!(policy::check))
        .routes(routes!(policy::test))
        .routes(routes!(policy::plan))
        .routes(routes!(policy::apply))
        .routes(routes!(policy::history))
        .routes(routes!(policy::rollback))
        .routes(routes!(policy::explain))
        .routes(routes!(policy::reach))
        .routes(routes!(fleet::status))
        .routes(routes!(fleet::events))
        .routes(routes!(fleet::metrics))
        .split_for_parts()
}

/// Makes the service.
pub(crate) fn router(control: Shared) -> Router {
    let (operators, description) = routes();
    let operators = operators.layer(middleware::from_fn(only_operators));
    let description = Arc::new(description);
    let describe = move || async move { Json((*description).clone()) };
    Router::new()
        .merge(operators)
        .route("/api/openapi.json", axum::routing::get(describe))
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(in_time))
        .with_state(control)
}

async fn only_operators(
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    match caller.0.as_ref() {
        Ok(_) => next.run(request).await,
        Err(refusal) => refusal.clone().into_response(),
    }
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => Refusal::new(
            Kind::Unavailable,
            "timeout",
            "the answer took too long",
            "try again",
        )
        .into_response(),
    }
}

async fn not_found(State(_): State<Shared>, request: Request) -> Response {
    Refusal::new(
        Kind::NotFound,
        "no_such_path",
        format!("there is no {} {}", request.method(), request.uri().path()),
        "/api/openapi.json describes what there is",
    )
    .into_response()
}

/// Serves one connection of an operator.
pub(crate) async fn serve(router: Router, stream: Box<TlsStream<TcpStream>>, caller: Caller) {
    let service = TowerToHyperService::new(router.layer(Extension(caller)));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_headers(HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(16 << 10)
        .max_concurrent_streams(32)
        .keep_alive_interval(Duration::from_secs(20));
    if let Err(error) = builder
        .serve_connection(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(error, "an operator's connection ended");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_description_names_every_path_once() {
        let (_, description) = super::routes();
        let paths = description.paths.paths.len();
        assert!(paths >= 22, "{paths}");
        assert!(
            description
                .to_json()
                .unwrap()
                .contains("/api/v1/policy/apply")
        );
    }
}
