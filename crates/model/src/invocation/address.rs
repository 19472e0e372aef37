//! Addresses that something may be sent to, and which of them lie inside a host or its network. Looks up no name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::Uri;

use crate::Invalid;

/// An address that something may be sent to.
///
/// # Errors
/// What it is not, and how one is written.
pub fn address(url: &str) -> Result<Uri, Invalid> {
    let wrong = |why: &str| Invalid(format!("{why}; it is an address such as https://host:port/path"));
    let uri: Uri = url.parse().map_err(|_| wrong("it is no URL"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(wrong("it begins with https:// or http://"));
    }
    let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
    let host = authority.host();
    if host.is_empty() || authority.as_str().contains('@') {
        return Err(wrong("it names a host, and no user"));
    }
    if !is_host(host) {
        return Err(wrong(&format!(
            "`{}` is no host: neither a name, nor 192.0.2.1, nor [2001:db8::1]",
            host.escape_debug()
        )));
    }
    match authority.as_str().strip_prefix(host) {
        Some("") => Ok(uri),
        Some(rest) if rest[1..].parse().is_ok_and(|port: u16| port > 0) => Ok(uri),
        _ => Err(wrong("its port is a number from 1 to 65535")),
    }
}

/// Whether a host can be looked up or connected to. What ends in a number is an IPv4 address in its one form (WHATWG URL, section 3.5): the
/// others, such as `127.1` and `0x7f000001`, mean one thing here and another there.
fn is_host(host: &str) -> bool {
    if let Some(inner) = host.strip_prefix('[') {
        return inner.strip_suffix(']').is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let plain = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let number = match hex {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => last.bytes().all(|b| b.is_ascii_digit()),
    };
    name.len() <= 253 && name.split('.').all(plain) && (!number || host.parse::<Ipv4Addr>().is_ok())
}

/// Whether an address says by itself that it lies inside a host or its network: by its numbers, or as `localhost`. A name that means such an
/// address is known only once it is looked up.
pub fn is_inside(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(ip) => !is_public(ip),
        Err(_) => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

/// Whether an address is out in the world (RFC 6890): not this host's, not its network's.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            // This network, shared address space, protocol assignments, benchmarking, reserved.
            let special = a == 0
                || (a == 100 && b & 0xc0 == 64)
                || (a, b, c) == (192, 0, 0)
                || (a == 198 && b & 0xfe == 18)
                || a >= 240;
            !(special
                || ip.is_loopback()
                || ip.is_private()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_documentation())
        }
        IpAddr::V6(ip) => match embedded(ip) {
            Some(ip) => is_public(ip),
            // Global unicast, without what is for documentation, and without what is set aside for protocols, tunnels (RFC 4380) among them.
            None => {
                let [a, b, ..] = ip.segments();
                a & 0xe000 == 0x2000 && !(a == 0x2001 && (b < 0x200 || b == 0xdb8)) && !(a == 0x3fff && b < 0x1000)
            }
        },
    }
}

/// The older address that one stands for: mapped, translated (RFC 6052), or in a tunnel (RFC 3056).
fn embedded(ip: Ipv6Addr) -> Option<IpAddr> {
    let s = ip.segments();
    let v4 = |high: u16, low: u16| IpAddr::from([(high >> 8) as u8, high as u8, (low >> 8) as u8, low as u8]);
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_out_in_the_world() {
        for text in [
            "8.8.8.8",
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1",
            "2001:200::1",
            "2001:4860::8888",
            "2002:808:808::1",
            "64:ff9b::808:808",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "2001:db8::1",
            "2001:0:1::80ff:fffe",
            "2001:1ff::1",
            "3fff:fff::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_says_that_it_is_inside() {
        let inside = |url: &str| is_inside(&address(url).unwrap_or_else(|e| panic!("{url}: {e}")));
        for url in [
            "http://127.0.0.1/",
            "https://[::1]:8443/x",
            "http://localhost:1",
            "http://a.LocalHost./",
            "http://10.1.2.3",
        ] {
            assert!(inside(url), "{url}");
        }
        for url in ["http://8.8.8.8/", "https://[2606:4700::1]/", "http://localhost.example.com", "https://example.com"]
        {
            assert!(!inside(url), "{url}");
        }
        for url in ["", "example.com", "ftp://example.com", "http:///x", "http://user@example.com/", "https://a b/"] {
            assert!(address(url).is_err(), "{url}");
        }
    }
    #[test]
    fn what_can_never_be_reached_is_no_address() {
        for url in [
            "http://example.com:0/",
            "http://example.com:99999/",
            "http://example.com:/",
            "http://[2606:4700::1]:0/",
            "http://.../",
            "http://a..b/",
            "http://.a/",
            "http://256.1.1.1/",
            "http://1.2.3/",
            "http://1.2.3.4.5/",
            "http://127.1/",
            "http://0x7f.1/",
            "http://0x7f000001/",
            "http://a.0X7f/",
            "http://0x/",
            "http://2130706433/",
            "http://017700000001/",
            "http://127.0.0.01/",
            "http://0/",
            "http://127.0.0.1./",
            "http://[::1::]/",
            "http://[fe80::1%25eth0]/",
            "http://[v1.a]/",
            "http://a%62/",
            "http://a*b/",
            &format!("http://{}/", "a".repeat(64)),
            &format!("http://{}a/", "a.".repeat(130)),
        ] {
            let said = address(url).expect_err(url).to_string();
            assert!(said.contains("such as https://host:port/path"), "{url}: {said}");
        }
        for url in [
            "http://example.com:1/",
            "https://example.com.:65535",
            "http://a_b/",
            "http://0x7g.example/",
            "http://1.example",
            "http://8.8.8.8:80/",
            "http://xn--bcher-kva.example/",
            "https://[2606:4700::1]:443/x?y",
            &format!("http://{}/", "a".repeat(63)),
        ] {
            address(url).unwrap_or_else(|e| panic!("{url}: {e}"));
        }
    }
}
