# SPDX-License-Identifier: Apache-2.0
"""Words that are no secret: everybody's methods, names and values. A redacted recording shows no others."""

from __future__ import annotations

import re
from typing import Final

from rover_plugin.access_log.protocols.http2.hpack import STATIC

# IANA's registry of HTTP methods (RFC 9110 §16.1).
METHODS: Final = frozenset(
    b"ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET HEAD LABEL LINK LOCK MERGE MKACTIVITY "
    b"MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE MOVE OPTIONS ORDERPATCH PATCH POST PRI PROPFIND PROPPATCH PUT "
    b"QUERY REBIND REPORT SEARCH TRACE UNBIND UNCHECKOUT UNLINK UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL".split()
)

# Names of IANA's registry and of gRPC and tracing that real messages carry; any other may say something.
NAMES: Final = frozenset(entry[1] for entry in STATIC if entry[1]) | frozenset(
    b":protocol alt-svc authentication-info b3 baggage connection content-security-policy "
    b"cross-origin-opener-policy dnt early-data forwarded grpc-accept-encoding grpc-encoding grpc-message "
    b"grpc-message-type grpc-status grpc-status-details-bin grpc-timeout http2-settings keep-alive origin "
    b"permissions-policy pragma priority proxy-connection referrer-policy sec-fetch-dest sec-fetch-mode "
    b"sec-fetch-site sec-fetch-user sec-websocket-accept sec-websocket-extensions sec-websocket-key "
    b"sec-websocket-protocol sec-websocket-version server-timing sw8 sw8-correlation sw8-x te trace-context "
    b"traceparent tracestate trailer uber-trace-id upgrade upgrade-insecure-requests x-b3-flags x-b3-parentspanid "
    b"x-b3-sampled x-b3-spanid x-b3-traceid x-content-type-options x-correlation-id x-forwarded-for "
    b"x-forwarded-host x-forwarded-port x-forwarded-proto x-frame-options x-powered-by x-real-ip x-request-id "
    b"x-requested-with x-xss-protection".split()
)

# Values that the result of an exchange is made of, as long as they are of the form that everybody's have.
_VALUES: Final = {
    b":method": re.compile(rb"|".join(map(re.escape, sorted(METHODS)))),
    b":status": re.compile(rb"[1-5][0-9]{2}"),
    b":scheme": re.compile(rb"https?"),
    b":protocol": re.compile(rb"websocket|connect-(?:udp|ip)|webtransport"),
    b"content-type": re.compile(rb"application/grpc(?:-web)?(?:-text)?(?:\+(?:proto|json|thrift))?"),
    b"grpc-status": re.compile(rb"1?[0-9]"),
}


def is_shown(name: bytes, value: bytes) -> bool:
    """Whether a field's value may be seen as it is; `name` in lower case."""
    form = _VALUES.get(name)
    return form is not None and form.fullmatch(value) is not None
