//! The upper bound: a hyper server that reads the body and answers the vendor's OK without storing anything.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Serves until it is killed, on a runtime with the relay's settings.
pub fn serve(address: &str) {
    let address: SocketAddr = address.parse().expect("the address is invalid");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("cannot start a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await.expect("cannot listen");
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.expect("cannot accept a connection");
                    stream.set_nodelay(true).expect("cannot set TCP_NODELAY");
                    let http = hyper::server::conn::http1::Builder::new();
                    connections.spawn(http.serve_connection(TokioIo::new(stream), service_fn(answer)));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    });
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let _ = request.into_body().collect().await;
    let mut response = Response::new(Full::new(Bytes::from_static(recall_relay::callback::OK)));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Ok(response)
}
