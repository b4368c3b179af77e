"""Expressions of the known formats of strings, for formats of calls that write strings without quotes.

The forms are those of the standards that JSON Schema's validation vocabulary names: RFC 3339 (dates, times, durations),
RFC 5321 (dot-string @ domain), RFC 1123 (host names), RFC 2673 and RFC 4291 (addresses), RFC 4122, RFC 3986.
"""

_DAY = "(0[1-9]|1[0-9]|2[0-8])"
_DATE = f"[0-9]{{4}}-((0[1-9]|1[0-2])-{_DAY}|02-29|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
_OFFSET = "([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_TIME = rf"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?{_OFFSET}"
_CLOCK = "T([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S)"
_CALENDAR = "([0-9]+Y([0-9]+M([0-9]+D)?)?|[0-9]+M([0-9]+D)?|[0-9]+D)"
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = rf"{_LABEL}(\.{_LABEL})*"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"({_BYTE}\.){{3}}{_BYTE}"
_HEX = "[0-9A-Fa-f]{1,4}"


def _ipv6() -> str:
    """Eight groups, of which the last two may be an IPv4 address; `::` stands for one run of groups or more."""
    low = f"({_HEX}:{_HEX}|{_IPV4})"
    forms = [f"({_HEX}:){{6}}{low}"]
    for num_behind in range(5, -1, -1):  # groups between `::` and the last two
        num_before = 5 - num_behind  # at most, in front of `::`
        before = f"(({_HEX}:){{0,{num_before - 1}}}{_HEX})?" if num_before else ""
        forms.append(f"{before}::({_HEX}:){{{num_behind}}}{low}")
    forms.append(f"(({_HEX}:){{0,5}}{_HEX})?::{_HEX}")
    forms.append(f"(({_HEX}:){{0,6}}{_HEX})?::")
    return "|".join(forms)


STRING_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"({_DATE})[Tt]{_TIME}",
    "duration": f"P({_CALENDAR}({_CLOCK})?|{_CLOCK}|[0-9]+W)",
    "email": rf"{_ATOM}(\.{_ATOM})*@{_HOSTNAME}",
    "hostname": _HOSTNAME,
    "ipv4": _IPV4,
    "ipv6": _ipv6(),
    "uuid": "[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*:([A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+",
}
