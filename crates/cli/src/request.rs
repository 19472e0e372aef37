//! What a request to a function is made of, as flags that several commands take. Never sends one.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;
use http::Method;

// No doc comment: it would take the place of what the command says of itself in its help.
#[derive(Args)]
pub(crate) struct Request {
    /// The function, with a path after it where it takes one: hello, hello/users/7
    name: String,
    /// The body
    #[arg(long, short, conflicts_with = "file")]
    pub(crate) data: Option<String>,
    /// The body, from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The method
    #[arg(long, short = 'X', default_value = "POST")]
    pub(crate) method: Method,
    /// A header; may be given several times
    #[arg(long, short = 'H', value_name = "NAME: VALUE")]
    header: Vec<String>,
}

impl Request {
    /// The function as typed, and the path after it, with its slash.
    pub(crate) fn target(&self) -> (&str, Option<&str>) {
        let (name, path) = self.name.split_at(self.name.find('/').unwrap_or(self.name.len()));
        (name, Some(path).filter(|path| !path.is_empty()))
    }

    /// What `-H` says, as often as it was given; a type of content where none is named.
    pub(crate) fn headers(&self) -> Result<Vec<(String, String)>> {
        let split = |text: &String| match text.split_once(':') {
            Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
            None => Err(anyhow!("`{text}` is not a header; write 'Name: value'")),
        };
        let mut headers = self.header.iter().map(split).collect::<Result<Vec<_>>>()?;
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            headers.push(("content-type".into(), "text/plain".into()));
        }
        Ok(headers)
    }
}
