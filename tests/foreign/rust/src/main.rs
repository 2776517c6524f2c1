//! The server and the client in Rust: `foreign server HOST:PORT` and `foreign client HOST:PORT < CASES`. See
//! ../__init__.py. tonic's server has no trailing metadata but with an error.

use std::convert::Infallible;
use std::future::Future;
use std::io::Read;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::{engine::general_purpose::STANDARD, Engine};
use bytes::{Buf, BufMut};
use serde_json::{json, Value};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::StreamExt;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EnabledCompressionEncodings, EncodeBuf, Encoder};
use tonic::metadata::{KeyAndValueRef, MetadataKey, MetadataMap, MetadataValue};
use tonic::server::{NamedService, StreamingService};
use tonic::{body::Body, transport, Code, Request, Response, Status, Streaming};

#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; from.remaining()];
        from.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}

fn decoded(pairs: &Value) -> MetadataMap {
    let mut found = MetadataMap::new();
    for pair in pairs.as_array().into_iter().flatten() {
        let (name, value) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        if name.ends_with("-bin") {
            let value = MetadataValue::from_bytes(&STANDARD.decode(value).unwrap());
            found.append_bin(MetadataKey::from_bytes(name.as_bytes()).unwrap(), value);
        } else {
            let value = MetadataValue::try_from(value).unwrap();
            found.append(MetadataKey::from_bytes(name.as_bytes()).unwrap(), value);
        }
    }
    found
}

fn encoded(metadata: &MetadataMap) -> Value {
    let mut found = vec![];
    for one in metadata.iter() {
        match one {
            KeyAndValueRef::Ascii(name, value) => {
                found.push(json!([name.as_str(), String::from_utf8_lossy(value.as_encoded_bytes())]));
            }
            KeyAndValueRef::Binary(name, value) => {
                found.push(json!([name.as_str(), STANDARD.encode(value.to_bytes().unwrap_or_default())]));
            }
        }
    }
    Value::Array(found)
}

fn payload(request: &Value) -> String {
    match request["payload"].as_str() {
        Some(text) => text.to_owned(),
        None => "x".repeat(request["size"].as_u64().unwrap_or(0) as usize),
    }
}

fn answer(text: &str, metadata: &Value, index: usize) -> Vec<u8> {
    json!({"payload": text, "metadata": metadata, "index": index}).to_string().into_bytes()
}

fn failure(request: &Value) -> Option<Status> {
    let code = request["status"][0].as_i64().unwrap_or(0);
    (code != 0).then(|| {
        let message = request["status"][1].as_str().unwrap_or("");
        Status::with_metadata(Code::from(code as i32), message, decoded(&request["trailing"]))
    })
}

async fn pause(request: &Value) {
    tokio::time::sleep(Duration::from_millis(request["pause_ms"].as_u64().unwrap_or(0))).await;
}

type Answers = ReceiverStream<Result<Vec<u8>, Status>>;

struct Method(String);

impl StreamingService<Vec<u8>> for Method {
    type Response = Vec<u8>;
    type ResponseStream = Answers;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Vec<u8>>>) -> Self::Future {
        let method = self.0.clone();
        Box::pin(async move {
            let metadata = encoded(request.metadata());
            let mut requests = request.into_inner();
            let mut first = Value::Null;
            let mut next = requests.message().await?;
            if let Some(message) = &next {
                first = serde_json::from_slice(message).map_err(|error| Status::internal(error.to_string()))?;
            }
            let initial = decoded(&first["initial"]);
            let (sender, receiver) = tokio::sync::mpsc::channel(4);
            tokio::spawn(async move {
                let mut index = 0;
                match method.as_str() {
                    "Unary" => {
                        pause(&first).await;
                        if failure(&first).is_none() {
                            let _ = sender.send(Ok(answer(&payload(&first), &metadata, 0))).await;
                        }
                    }
                    "ServerStream" => {
                        while index < first["count"].as_u64().unwrap_or(1) as usize {
                            pause(&first).await;
                            if sender.send(Ok(answer(&payload(&first), &metadata, index))).await.is_err() {
                                return;
                            }
                            index += 1;
                        }
                    }
                    "ClientStream" => {
                        let mut joined = String::new();
                        while let Some(message) = next {
                            joined += &payload(&serde_json::from_slice(&message).unwrap_or(Value::Null));
                            index += 1;
                            next = requests.message().await.unwrap_or(None);
                        }
                        if failure(&first).is_none() {
                            let _ = sender.send(Ok(answer(&joined, &metadata, index))).await;
                        }
                    }
                    _ => {
                        while let Some(message) = next {
                            let request = serde_json::from_slice(&message).unwrap_or(Value::Null);
                            if sender.send(Ok(answer(&payload(&request), &metadata, index))).await.is_err() {
                                return;
                            }
                            index += 1;
                            if Some(index as u64) == first["end_after"].as_u64() {
                                break;
                            }
                            next = requests.message().await.unwrap_or(None);
                        }
                    }
                }
                if let Some(status) = failure(&first) {
                    let _ = sender.send(Err(status)).await;
                }
            });
            let mut response = Response::new(ReceiverStream::new(receiver));
            *response.metadata_mut() = initial;
            Ok(response)
        })
    }
}

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "foreign.Echo";
}

impl tower::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or("").to_owned();
        Box::pin(async move {
            let mut accepted = EnabledCompressionEncodings::default();
            accepted.enable(CompressionEncoding::Gzip);
            let mut grpc = tonic::server::Grpc::new(Raw)
                .apply_compression_config(accepted, EnabledCompressionEncodings::default())
                .max_decoding_message_size(16 << 20);
            Ok(grpc.streaming(Method(method), request).await)
        })
    }
}

async fn carry_out(channel: transport::Channel, case: &Value) -> Value {
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(16 << 20);
    if case["gzip"].as_bool() == Some(true) {
        grpc = grpc.send_compressed(CompressionEncoding::Gzip);
    }
    let messages: Vec<Vec<u8>> =
        case["requests"].as_array().into_iter().flatten().map(|one| one.to_string().into_bytes()).collect();
    let mut request = Request::new(tokio_stream::iter(messages));
    *request.metadata_mut() = decoded(&case["metadata"]);
    request.set_timeout(Duration::from_millis(case["timeout_ms"].as_u64().unwrap_or(30000)));
    let path = format!("/foreign.Echo/{}", case["method"].as_str().unwrap());
    let (mut initial, mut trailing, mut answers) = (json!([]), json!([]), vec![]);
    let mut status = json!([0, ""]);
    let mut failed = |error: Status, trailing: &mut Value| {
        *trailing = encoded(error.metadata());
        json!([error.code() as i32, error.message()])
    };
    if let Err(error) = grpc.ready().await {
        status = json!([14, error.to_string()]);
    } else {
        match grpc.streaming(request, path.parse().unwrap(), Raw).await {
            Err(error) => status = failed(error, &mut trailing),
            Ok(response) => {
                initial = encoded(response.metadata());
                let mut stream = response.into_inner();
                while let Some(got) = stream.next().await {
                    match got {
                        Err(error) => status = failed(error, &mut trailing),
                        Ok(message) => {
                            let mut one: Value = serde_json::from_slice(&message).unwrap();
                            let length = one["payload"].as_str().unwrap_or("").len();
                            if length > 1000 {
                                one["payload"] = json!(length);
                            }
                            answers.push(one);
                        }
                    }
                    if Some(answers.len() as u64) == case["cancel_after"].as_u64() {
                        // A stream that is dropped is cancelled.
                        status = json!([1, "cancelled"]);
                        break;
                    }
                }
                if status[0] == 0 {
                    if let Ok(Some(found)) = stream.trailers().await {
                        trailing = encoded(&found);
                    }
                }
            }
        }
    }
    json!({"status": status, "initial": initial, "trailing": trailing, "answers": answers})
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments[1] == "server" {
        println!("serving");
        transport::Server::builder().add_service(Echo).serve(arguments[2].parse()?).await?;
        return Ok(());
    }
    let channel = transport::Endpoint::from_shared(format!("http://{}", arguments[2]))?.connect().await?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    for case in serde_json::from_str::<Value>(&text)?.as_array().into_iter().flatten() {
        println!("{}", carry_out(channel.clone(), case).await);
    }
    Ok(())
}
