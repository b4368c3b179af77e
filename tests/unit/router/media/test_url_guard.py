"""Which URLs and addresses the server may connect to."""

import pytest
from textmill_router.media.url_guard import UrlRefused, check_addresses, redirect_of, target_of

ALL = ("*",)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://a.com", ("http", "a.com", 80, "/")),
        ("https://a.com/x/y.png?z=1#frag", ("https", "a.com", 443, "/x/y.png?z=1")),
        ("HTTPS://A.Com:443/", ("https", "a.com", 443, "/")),
        ("http://a.com./", ("http", "a.com", 80, "/")),
        ("http://[2606:4700::1111]/", ("http", "2606:4700::1111", 80, "/")),
    ],
)
def test_a_url_is_read(url: str, found: tuple[str, str, int, str]) -> None:
    target = target_of(url, ALL)
    assert (target.scheme, target.host, target.port, target.path) == found


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cat.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://a.com/x.png",
        "gopher://a.com/",
        "http:///x.png",
        "http://",
        "http://user@a.com/",
        "http://user:password@a.com/",
        "http://a.com@b.com/",
        "http://a.com:8080/",
        "http://a.com:443/",
        "https://a.com:80/",
        "http://a.com:port/",
        "http://a.com:99999999/",
        "http://a.com\\@b.com/",
        "http://a.com/x y",
        "http://a.com/\r\nHost: b.com",
        "http://a.com/\tx",
        "http://[fe80::1%25eth0]/",
        "http://[::1/",
        "http://ä.com/",
        "http://a.com/" + "x" * 9000,
    ],
)
def test_all_else_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        target_of(url, ALL)


def test_hosts_are_those_of_the_flag() -> None:
    domains = ("a.com", "*.b.org")
    for host in ("a.com", "A.COM", "x.b.org", "x.y.b.org"):
        assert target_of(f"http://{host}/", domains).host == host.lower()
    for host in ("www.a.com", "a.com.evil.net", "b.org", "xb.org", "evila.com"):
        with pytest.raises(UrlRefused):
            target_of(f"http://{host}/", domains)
    with pytest.raises(UrlRefused):
        target_of("http://a.com/", ())


def test_a_redirect_is_checked_like_a_url_and_keeps_https() -> None:
    first = target_of("https://a.com/x/y", ("a.com", "b.com"))
    assert redirect_of(first, "../z", ("a.com", "b.com")).url == "https://a.com/z"
    assert redirect_of(first, "https://b.com/", ("a.com", "b.com")).host == "b.com"
    for location in ("http://a.com/", "https://c.com/", "//c.com/", "file:///x", "https://a.com:8443/"):
        with pytest.raises(UrlRefused):
            redirect_of(first, location, ("a.com", "b.com"))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "2002:a00:1::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12:3456::1",
        "ff02::1",
        "2001:db8::1",
        "2001:0:7f00:1::",
    ],
)
def test_addresses_that_are_not_of_the_internet_are_refused(address: str) -> None:
    for addresses in ([address], ["1.1.1.1", address], [address, "1.1.1.1"]):
        with pytest.raises(UrlRefused):
            check_addresses(addresses)


def test_addresses_of_the_internet_pass() -> None:
    assert check_addresses(["93.184.215.14", "2606:4700::1111"]) == "93.184.215.14"
    assert check_addresses(["64:ff9b::5db8:d70e"]) == "64:ff9b::5db8:d70e"
    with pytest.raises(UrlRefused):
        check_addresses([])
