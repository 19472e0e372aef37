//! Files that the tests write to run them. Knows nothing of what is in them.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

/// Writes a file that can be run. By a process of its own: a descriptor to write with, in this one, would be in each child that
/// another test starts meanwhile, until its exec; and a file that anybody may write to cannot be run ("text file busy").
pub(crate) fn write_program(path: &Path, text: &str) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success(), "{}", path.display());
}
