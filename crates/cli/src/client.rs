//! The platform's HTTP API as the commands use it: one blocking client, errors in words.

use std::{
    io::{BufRead, BufReader, Cursor, Read},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{Method, Request, Response};
use serde_json::Value;
use taper_model::{FunctionName, Name};
use ureq::{
    Agent, Body, SendBody,
    unversioned::{
        resolver::DefaultResolver,
        transport::{Connector, TcpConnector},
    },
};

use crate::{
    context::{self, CA, Credential, Global},
    tls::Tls,
};

/// The body of a request that has none.
const NOTHING: Option<std::io::Empty> = None;

/// Who makes a change, in our own words: beside the user whose password it was.
const BY: &str = "x-taper-by";

/// One JSON object a line.
const NDJSON: &str = "application/x-ndjson";

/// How often, and after how long each time, whoever follows something looks for a platform that has ended.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(200);

/// A platform at a URL, with the credential that is known for it.
pub(crate) struct Client {
    agent: Agent,
    url: String,
    authorization: Option<String>,
}

impl Client {
    /// A client for the platform that the flags name.
    pub(crate) fn new(global: &Global) -> Result<Self> {
        Self::with(global, global.credential()?.as_ref())
    }

    /// The same, with this credential.
    pub(crate) fn with(global: &Global, credential: Option<&Credential>) -> Result<Self> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("taper/", env!("CARGO_PKG_VERSION")))
            .build();
        let authorization =
            credential.map(|c| format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{}", c.user, c.password))));
        let agent = match global.tls(&[])? {
            Some(tls) => Agent::with_parts(config, TcpConnector::default().chain(Tls(tls)), DefaultResolver::default()),
            None => config.into(),
        };
        Ok(Self { agent, url: global.url()?, authorization })
    }

    /// The platform's URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The API path of a function.
    pub(crate) fn function_path(name: &FunctionName) -> String {
        format!("/v1/namespaces/{}/functions/{}", name.namespace, name.name)
    }

    /// The API path of a namespace's calls whose callers do not wait.
    pub(crate) fn invocations_path(namespace: &Name) -> String {
        format!("/v1/namespaces/{namespace}/invocations")
    }

    /// The API path of a route.
    pub(crate) fn route_path(name: &FunctionName) -> String {
        format!("/v1/namespaces/{}/routes/{}", name.namespace, name.name)
    }

    /// The API path of a trigger.
    pub(crate) fn trigger_path(name: &FunctionName) -> String {
        format!("/v1/namespaces/{}/triggers/{}", name.namespace, name.name)
    }

    /// Sends one request; any status comes back as a response.
    pub(crate) fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(String, String)],
        body: Option<impl Read + 'static>,
    ) -> Result<Response<Body>> {
        let changes = !matches!(method, Method::GET | Method::HEAD);
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        // To the platform alone: a function is not to be trusted with it.
        if path.starts_with("/v1/") || path.starts_with("/system/") {
            if let Some(authorization) = &self.authorization {
                request = request.header("authorization", authorization);
            }
            if let Some(who) = context::who().filter(|_| changes) {
                request = request.header(BY, who);
            }
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let body = body.map_or_else(SendBody::none, SendBody::from_owned_reader);
        let request =
            request.body(body).with_context(|| format!("{}{path} is not a request that can be sent", self.url))?;
        self.agent.run(request).map_err(|e| self.explain(e))
    }

    /// Sends JSON to the API and reads JSON back; a refusal becomes an error in the platform's words.
    pub(crate) fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut response = self.api(method, path, body)?;
        let text = response.body_mut().read_to_string().context("the platform's answer broke off")?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text)
            .with_context(|| format!("{} did not answer with JSON: is it a Taper platform?", self.url))
    }

    /// Sends JSON to the API and reads its answer line by line as JSON.
    pub(crate) fn lines(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<impl Iterator<Item = Result<Value>> + use<>> {
        Ok(lines_of(self.api(method, path, body)?))
    }

    /// Reads server-sent events: the name of each, and its data as JSON.
    pub(crate) fn events(&self, path: &str) -> Result<impl Iterator<Item = Result<(String, Value)>> + use<>> {
        let mut lines = BufReader::new(self.api(Method::GET, path, None)?.into_body().into_reader()).lines();
        Ok(std::iter::from_fn(move || {
            let mut name = String::new();
            loop {
                let line = match lines.next()? {
                    Ok(line) => line,
                    Err(e) => return Some(Err(anyhow!(e).context("the connection to the platform broke off"))),
                };
                if let Some(said) = line.strip_prefix("event: ") {
                    said.clone_into(&mut name);
                } else if let Some(data) = line.strip_prefix("data: ") {
                    let data = serde_json::from_str(data).context("the platform sent an event that is not JSON");
                    return Some(data.map(|data| (std::mem::take(&mut name), data)));
                }
            }
        }))
    }

    /// Deploys as OpenFaaS's clients do: an update, and where there is nothing to update yet, a new function. The answer is the lines
    /// of the deploy, or nothing where the platform has only taken note.
    pub(crate) fn deploy(&self, deployment: &Value) -> Result<Option<impl Iterator<Item = Result<Value>> + use<>>> {
        let headers =
            [("content-type", "application/json"), ("accept", NDJSON)].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let send = |method| self.send(method, "/system/functions", &headers, Some(Cursor::new(deployment.to_string())));
        let mut response = send(Method::PUT)?;
        if response.status() == 404 {
            response = send(Method::POST)?;
        }
        let response = self.accept(response)?;
        let streams = response.headers().get("content-type").is_some_and(|kind| kind == NDJSON);
        Ok(streams.then(|| lines_of(response)))
    }

    /// Uploads an artifact and gives its digest.
    pub(crate) fn upload(&self, archive: Vec<u8>, digest: &str) -> Result<()> {
        let known = self.send(Method::HEAD, &format!("/v1/artifacts/{digest}"), &[], NOTHING)?;
        if known.status() == 200 {
            return Ok(());
        }
        let response =
            self.send(Method::PUT, &format!("/v1/artifacts?digest={digest}"), &[], Some(Cursor::new(archive)))?;
        self.accept(response).map(drop).context("the code could not be uploaded")
    }

    /// A body as it is.
    pub(crate) fn raw(&self, path: &str) -> Result<impl Read + use<>> {
        Ok(self.api(Method::GET, path, None)?.into_body().into_reader())
    }

    fn api(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Response<Body>> {
        let headers = [("content-type".to_owned(), "application/json".to_owned())];
        let headers = if body.is_some() { &headers[..] } else { &[] };
        let body = body.map(|value| Cursor::new(value.to_string()));
        let response = self.send(method, path, headers, body)?;
        self.accept(response)
    }

    /// Turns a refusal into an error with the mend that fits.
    fn accept(&self, mut response: Response<Body>) -> Result<Response<Body>> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let mut text = String::new();
        let _ = response.body_mut().as_reader().take(1 << 20).read_to_string(&mut text);
        let said = serde_json::from_str::<Value>(&text).ok().and_then(|v| v["message"].as_str().map(str::to_owned));
        let said = said.unwrap_or_else(|| text.trim().to_owned());
        match status.as_u16() {
            401 if self.authorization.is_none() => bail!(
                "{} wants a password and none is known for it: log in with `taper login --password-stdin {}`, or start the platform as this user",
                self.url,
                self.url
            ),
            401 => bail!(
                "{} refused the password that is remembered for it: it may be that of another data directory, whose `admin-password` has the right one; \
                 log in with `taper login --password-stdin {}`",
                self.url,
                self.url
            ),
            _ if said.is_empty() => bail!("{} answered {status}", self.url),
            _ => Err(anyhow!(said)),
        }
    }

    fn explain(&self, error: ureq::Error) -> anyhow::Error {
        match error {
            ureq::Error::Io(e) => unreachable(&self.url, &e),
            ureq::Error::Protocol(e) if self.url.starts_with("http:") => {
                anyhow!("cannot reach {}: what answers there is not HTTP ({e}); is it an https address?", self.url)
            }
            other => anyhow!(other).context(format!("cannot reach {}", self.url)),
        }
    }
}

/// Asks for a while until there is an answer: the platform has ended, or another process takes over from it.
pub(crate) fn persist<T>(mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let mut tries = TRIES;
    loop {
        std::thread::sleep(PAUSE);
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if tries == 0 => return Err(error),
            Err(_) => tries -= 1,
        }
    }
}

/// Why nobody could be reached at this URL, and the mend.
pub(crate) fn unreachable(url: &str, error: &std::io::Error) -> anyhow::Error {
    if error.kind() == std::io::ErrorKind::ConnectionRefused {
        return anyhow!("nothing answers at {url}: start the platform with `taper up`, or say where it is with --url");
    }
    match taper_trust::in_words(error, CA) {
        Some(words) => anyhow!("cannot reach {url}: {words}"),
        None => anyhow!("cannot reach {url}: {error}"),
    }
}

/// An answer's lines, each as JSON.
fn lines_of(response: Response<Body>) -> impl Iterator<Item = Result<Value>> + use<> {
    let reader = BufReader::new(response.into_body().into_reader());
    reader.lines().filter(|l| l.as_ref().map_or(true, |l| !l.trim().is_empty())).map(|line| {
        let line = line.context("the connection to the platform broke off")?;
        serde_json::from_str(&line).with_context(|| format!("the platform sent a line that is not JSON: {line}"))
    })
}
