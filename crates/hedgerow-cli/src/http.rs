//! The controller over HTTPS: TLS 1.3, the operator's certificate, nothing trusted but the given roots.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_model::Fault;
use serde_json::Value;
use ureq::http::{Request as HttpRequest, Response, StatusCode};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body as AnswerBody};

use crate::api::{Api, Body, Method, Request, segment};
use crate::config::{self, Config};
use crate::error::CliError;

/// Largest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Longest attempt to connect.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// A configured connection; it is made at the first request and kept.
pub(crate) struct Http {
    agent: Agent,
    url: String,
    timeout: Duration,
}

impl Http {
    /// Reads keys and roots. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`CliError`] when a file is missing or is not PEM.
    pub(crate) fn connect(config: &Config, timeout: Duration) -> Result<Self, CliError> {
        let chain = certificates(&config::bytes(&config.certificate)?);
        let key = private_key(&config::bytes(&config.key)?);
        let roots = certificates(&config::bytes(&config.root)?);
        if chain.is_empty() {
            return Err(missing("certificate", &config.certificate));
        }
        if roots.is_empty() {
            return Err(missing("root certificate", &config.root));
        }
        let key = key.ok_or_else(|| missing("private key", &config.key))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = TlsConfig::builder()
            .client_cert(Some(ClientCert::new_with_certs(&chain, key)))
            .root_certs(RootCerts::new_with_certs(&roots))
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .max_redirects(0)
            .proxy(None)
            .http_status_as_error(false)
            .timeout_connect(Some(timeout.min(CONNECT_WITHIN)))
            .user_agent(concat!("hedgerow/", env!("CARGO_PKG_VERSION")))
            .build();
        let (agent, url) = (agent.into(), config.url.clone());
        Ok(Self {
            agent,
            url,
            timeout,
        })
    }

    fn failed(&self, error: &ureq::Error) -> CliError {
        let text = error.to_string();
        let has = |word: &str| text.to_ascii_lowercase().contains(word);
        let (fault, code, remedy) = if has("expired") {
            (
                Fault::Operator,
                "certificate_expired",
                "on the controller, run `hedgerow-control operator renew`",
            )
        } else if matches!(error, ureq::Error::Rustls(_) | ureq::Error::Tls(_))
            || has("certificate")
        {
            (
                Fault::Peer,
                "tls_failed",
                "is this the controller that `root` and `certificate` in cli.toml belong to?",
            )
        } else if matches!(error, ureq::Error::HostNotFound) {
            (
                Fault::Environment,
                "host_not_found",
                "check `url` in cli.toml and the name service",
            )
        } else {
            (
                Fault::Environment,
                "unreachable",
                "is the controller running (`systemctl status hedgerow-control`) and its port open? \
                 devices go on enforcing without it",
            )
        };
        let message = format!("cannot reach {}: {text}", self.url);
        CliError::new(fault, code, message, remedy)
    }
}

fn missing(what: &str, file: &Path) -> CliError {
    CliError::new(
        Fault::Operator,
        "credential_invalid",
        format!("no {what} in {}", file.display()),
        "on the controller, `hedgerow-control operator renew` makes the operator's files anew",
    )
}

impl Api for Http {
    fn call(&mut self, request: Request) -> Result<Value, CliError> {
        let (kind, body) = match &request.body {
            Body::None => (None, Vec::new()),
            Body::Json(value) => (Some("application/json"), value.to_string().into_bytes()),
            Body::Yaml(text) => (Some("application/yaml"), text.clone().into_bytes()),
        };
        let mut made = HttpRequest::builder()
            .method(method(request.method))
            .uri(self.uri(&request));
        if let Some(kind) = kind {
            made = made.header("content-type", kind);
        }
        let made = made.body(body).map_err(|e| {
            CliError::invalid(
                format!("this makes no request: {e}"),
                "check `url` in cli.toml",
            )
        })?;
        let within = self.timeout.saturating_add(request.patience);
        let made = self
            .agent
            .configure_request(made)
            .timeout_global(Some(within))
            .allow_non_standard_methods(true)
            .build();
        let answer = self.agent.run(made);
        read(answer.map_err(|e| self.failed(&e))?)
    }
}

impl Http {
    fn uri(&self, request: &Request) -> String {
        let mut uri = format!("{}/api/v1/{}", self.url, request.path);
        for (i, (name, value)) in request.query.iter().enumerate() {
            uri.push(if i == 0 { '?' } else { '&' });
            uri.push_str(name);
            uri.push('=');
            uri.push_str(&segment(value));
        }
        uri
    }
}

fn method(method: Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
    }
}

fn read(mut answer: Response<AnswerBody>) -> Result<Value, CliError> {
    let status = answer.status();
    let limited = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
    let text = limited.read_to_string().map_err(|e| {
        let message = format!("the answer broke off: {e}");
        CliError::new(Fault::Environment, "answer_cut", message, "try again")
    })?;
    let value = serde_json::from_str(&text).unwrap_or(Value::Null);
    if !status.is_success() {
        return Err(refused(status, &value));
    }
    if value.is_null() && !text.trim().is_empty() {
        return Err(CliError::answer("JSON"));
    }
    Ok(value)
}

/// Makes an error of the controller's own words.
fn refused(status: StatusCode, answer: &Value) -> CliError {
    let error = answer.get("error").unwrap_or(&Value::Null);
    let text = |key: &str| {
        error
            .get(key)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    let fault = match (text("fault"), status.as_u16()) {
        (Some("operator"), _) => Fault::Operator,
        (Some("environment"), _) | (None, 429 | 503 | 504) => Fault::Environment,
        // A bug there is a misbehaving peer to us.
        (Some(_), _) | (None, 500..=599) => Fault::Peer,
        (None, _) => Fault::Operator,
    };
    let message = match text("message") {
        Some(message) => message.to_owned(),
        None => format!("the controller answered {status}"),
    };
    let code = match text("code") {
        Some(code) => code.to_owned(),
        None => format!("http_{}", status.as_u16()),
    };
    let mut refused = CliError::new(fault, &code, message, text("remedy").unwrap_or_default());
    refused.details = error
        .get("details")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    refused
}

fn certificates(pem: &[u8]) -> Vec<Certificate<'static>> {
    let items = parse_pem(pem).filter_map(Result::ok);
    items
        .filter_map(|item| {
            if let PemItem::Certificate(certificate) = item {
                Some(certificate)
            } else {
                None
            }
        })
        .collect()
}

fn private_key(pem: &[u8]) -> Option<PrivateKey<'static>> {
    let mut items = parse_pem(pem).filter_map(Result::ok);
    items.find_map(|item| {
        if let PemItem::PrivateKey(key) = item {
            Some(key)
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_keeps_the_controllers_words_and_its_exit_code() {
        let answer = json!({"error": {"code": "device_not_found", "message": "no device is called `x`",
            "remedy": "look", "fault": "operator", "details": [{"a": 1}]}});
        let error = refused(StatusCode::NOT_FOUND, &answer);
        assert_eq!(
            (error.code.as_str(), error.exit_code()),
            ("device_not_found", 1)
        );
        assert_eq!(error.details.len(), 1);
        let exit = |status: u16, answer: &Value| {
            refused(StatusCode::from_u16(status).unwrap(), answer).exit_code()
        };
        assert_eq!(exit(503, &Value::Null), 4);
        assert_eq!(exit(502, &Value::Null), 3);
        assert_eq!(exit(500, &json!({"error": {"fault": "bug"}})), 3);
        assert_eq!(exit(403, &Value::Null), 1);
    }
}
