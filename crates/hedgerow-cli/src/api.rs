//! What is asked of a controller, apart from how it gets there.

use std::time::Duration;

use serde_json::Value;

use crate::error::CliError;

/// An HTTP method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// Reads.
    Get,
    /// Creates or orders.
    Post,
    /// Replaces.
    Put,
    /// Removes.
    Delete,
}

/// What a request carries.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Body {
    /// Nothing.
    None,
    /// A JSON document.
    Json(Value),
    /// A policy file.
    Yaml(String),
}

/// One request, below `/api/v1/`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    /// The method.
    pub(crate) method: Method,
    /// The path, segments encoded.
    pub(crate) path: String,
    /// Names and values, not encoded.
    pub(crate) query: Vec<(&'static str, String)>,
    /// The body.
    pub(crate) body: Body,
    /// How much longer than usual the answer may take.
    pub(crate) patience: Duration,
}

impl Request {
    /// Reads `path`.
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::Get, path, Body::None)
    }

    /// Orders something.
    pub(crate) fn post(path: impl Into<String>, body: Body) -> Self {
        Self::new(Method::Post, path, body)
    }

    /// Makes a request.
    pub(crate) fn new(method: Method, path: impl Into<String>, body: Body) -> Self {
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            body,
            patience: Duration::ZERO,
        }
    }

    /// Adds a query value.
    pub(crate) fn query(mut self, name: &'static str, value: impl ToString) -> Self {
        self.query.push((name, value.to_string()));
        self
    }

    /// Grants the answer more time.
    pub(crate) fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Adds a query value if there is one.
    pub(crate) fn query_if(self, name: &'static str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }
}

/// A controller.
pub(crate) trait Api {
    /// Sends a request and returns the answer.
    ///
    /// # Errors
    ///
    /// [`CliError`] with the controller's own words, or ours when it could not be asked.
    fn call(&mut self, request: Request) -> Result<Value, CliError>;
}

/// Stands in when no controller could be configured: the first request says why.
pub(crate) struct Unconnected {
    error: Option<CliError>,
}

impl Unconnected {
    /// Keeps the reason.
    pub(crate) fn new(error: CliError) -> Self {
        Self { error: Some(error) }
    }
}

impl Api for Unconnected {
    fn call(&mut self, _: Request) -> Result<Value, CliError> {
        let known = self.error.take();
        Err(known.unwrap_or_else(|| CliError::invalid("no controller is configured", "")))
    }
}

/// Encodes one segment of a path.
pub(crate) fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
