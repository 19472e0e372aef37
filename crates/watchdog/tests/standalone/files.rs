//! Mode `static`.

use std::{fs, os::unix::fs::symlink};

use crate::dog::{Caller, Dog};

#[test]
// long because: it is a table.
fn files_and_nothing_but_files_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let public = folder.path().join("public");
    fs::create_dir_all(public.join("sub/deep")).unwrap();
    fs::create_dir_all(public.join("site")).unwrap();
    fs::create_dir_all(folder.path().join("public-not")).unwrap();
    fs::write(folder.path().join("secret"), "secret").unwrap();
    fs::write(folder.path().join("public-not/secret"), "secret").unwrap();
    fs::write(public.join("a.txt"), "hello").unwrap();
    fs::write(public.join("b c.css"), "b{}").unwrap();
    fs::write(public.join("page"), "<html>").unwrap();
    fs::write(public.join("empty"), "").unwrap();
    fs::write(public.join("sub/<x>.json"), "{}").unwrap();
    fs::write(public.join("site/index.html"), "index").unwrap();
    symlink("../secret", public.join("out")).unwrap();
    symlink("/etc", public.join("etc")).unwrap();
    symlink("a.txt", public.join("in")).unwrap();
    symlink("loop", public.join("loop")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        public.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let path = public.to_str().unwrap().to_owned();
    let dog = Dog::within(folder, &[("mode", "static"), ("static_path", &path)]);
    for (path, status, body, content_type) in [
        ("/a.txt", 200, "hello", "text/plain; charset=utf-8"),
        ("/in", 200, "hello", "text/plain; charset=utf-8"),
        ("/b%20c.css", 200, "b{}", "text/css; charset=utf-8"),
        ("/page", 200, "<html>", "text/html; charset=utf-8"),
        ("/empty", 200, "", "text/plain; charset=utf-8"),
        ("/site/", 200, "index", "text/html; charset=utf-8"),
        ("/sub//%3Cx%3E.json?q", 200, "{}", "application/json"),
        ("/nope", 404, "404 page not found\n", "text/plain; charset=utf-8"),
        ("/a.txt/", 404, "", ""),
        ("/out", 404, "", ""),
        ("/etc/passwd", 404, "", ""),
        ("/loop", 404, "", ""),
        ("/pipe", 404, "", ""),
        ("/../secret", 404, "", ""),
        ("/sub/../../secret", 404, "", ""),
        ("/%2e%2e/secret", 404, "", ""),
        ("/%2e%2e%2fsecret", 404, "", ""),
        ("/..%2fpublic-not/secret", 404, "", ""),
        ("/a.txt%00.png", 404, "", ""),
        ("/%ff%fe", 404, "", ""),
        ("//etc/passwd", 404, "", ""),
    ] {
        let answer = dog.get(path);
        assert_eq!(answer.status(), status, "{path}: {answer:?}");
        assert!(!answer.text().contains("secret") && !answer.text().contains("root:"), "{path}: {answer:?}");
        if !content_type.is_empty() {
            assert_eq!((answer.text().as_str(), answer.header("content-type")), (body, Some(content_type)), "{path}");
        }
    }
    let list = dog.get("/sub/").text();
    assert!(
        list.contains("<a href=\"./deep/\">deep/</a>\n<a href=\"./%3Cx%3E.json\">&lt;x&gt;.json</a>")
            || list.contains("&lt;x&gt;.json</a>\n<a href=\"./deep/\">"),
        "{list}"
    );
    let moved = dog.get("/sub?q=1");
    assert_eq!((moved.status(), moved.header("location")), (301, Some("./sub/?q=1")));
    let part = dog.ask("GET", "/a.txt", &[("Range", "bytes=1-2")], b"");
    assert_eq!((part.status(), part.text().as_str()), (206, "el"));
    assert_eq!(part.header("content-range"), Some("bytes 1-2/5"));
    assert_eq!(dog.ask("GET", "/a.txt", &[("Range", "bytes=9-")], b"").status(), 416);
    let head = dog.ask("HEAD", "/a.txt", &[], b"");
    assert_eq!((head.status(), head.header("content-length")), (200, Some("5")));
    let since = head.header("last-modified").unwrap().to_owned();
    let unchanged = dog.ask("GET", "/a.txt", &[("If-Modified-Since", &since)], b"");
    assert_eq!((unchanged.status(), unchanged.body.len()), (304, 0));
    assert_eq!(dog.ask("POST", "/a.txt", &[], b"x").text(), "hello");
    assert_eq!(dog.get("/_/ready").status(), 200);
    fs::remove_dir_all(dog.path("public")).unwrap();
    assert_eq!((dog.get("/_/ready").status(), dog.get("/a.txt").status()), (503, 404));
}

#[test]
fn a_large_file_waits_for_its_reader() {
    let folder = tempfile::tempdir().unwrap();
    let size = 64 << 20;
    fs::File::create(folder.path().join("large.bin")).unwrap().set_len(size).unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    let dog = Dog::within(folder, &[("mode", "static"), ("static_path", &path)]);
    let mut caller = Caller::to(dog.port);
    caller.request("GET", "/large.bin", &[], b"");
    assert_eq!(dog.get("/_/health").status(), 200);
    let answer = caller.answer(false);
    assert_eq!((answer.body.len() as u64, answer.whole), (size, true));
    let status = fs::read_to_string(format!("/proc/{}/status", dog.child.id())).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
    assert!(peak.parse::<u64>().unwrap() < 40_000, "{peak} kB");
}
