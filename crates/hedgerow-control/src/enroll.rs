//! Enrollment on the wire: hello, one request, one reply.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_identity::enroll::wire::{
    EnrollReply, EnrollRequest, FrameBuffer, Hello, REQUEST_BYTES_MAX, RefusalCode, frame,
};
use hedgerow_identity::enroll::{EXPORTER_BYTES, EXPORTER_LABEL};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::control::Controller;

/// How long the whole exchange may take.
const EXCHANGE_WITHIN: Duration = Duration::from_secs(30);

/// Serves one device that asks for an identity.
pub(crate) async fn serve(
    control: Arc<Controller>,
    mut stream: Box<TlsStream<TcpStream>>,
    source: IpAddr,
) {
    let exchange = exchange(&control, &mut stream, source);
    match tokio::time::timeout(EXCHANGE_WITHIN, exchange).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, %source, "enrollment ended"),
        Err(_elapsed) => tracing::debug!(%source, "enrollment took too long"),
    }
}

async fn exchange(
    control: &Controller,
    stream: &mut TlsStream<TcpStream>,
    source: IpAddr,
) -> std::io::Result<()> {
    let exporter = stream
        .get_ref()
        .1
        .export_keying_material([0; EXPORTER_BYTES], EXPORTER_LABEL, None)
        .map_err(std::io::Error::other)?;
    let manifest_chain = control.snapshot().trust.export();
    let hello = Hello {
        manifest_chain: manifest_chain.into_iter().map(Into::into).collect(),
    };
    stream.write_all(&frame(&hello)).await?;
    stream.flush().await?;
    let Some(body) = read_frame(stream).await? else {
        return Ok(());
    };
    let reply = match EnrollRequest::decode_body(&body) {
        Ok(request) => control.enroll(request, exporter, source).await,
        Err(error) => EnrollReply::Refused {
            code: RefusalCode::Malformed,
            reason: error.to_string(),
        },
    };
    stream.write_all(&frame(&reply)).await?;
    stream.shutdown().await
}

async fn read_frame(stream: &mut TlsStream<TcpStream>) -> std::io::Result<Option<Vec<u8>>> {
    let mut frames = FrameBuffer::new(REQUEST_BYTES_MAX);
    let mut buffer = [0; 1024];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(None);
        }
        frames.push(buffer.get(..n).unwrap_or_default());
        if let Some(body) = frames.pop().map_err(std::io::Error::other)? {
            return Ok(Some(body));
        }
    }
}
