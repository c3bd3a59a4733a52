"""AWS's error codes, classified once: for the identity that is verified and for the objects that are read alike.

Codes by https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html and
https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html; a status stands for an answer without a code.
"""

# fmt: off
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
CLOCK = frozenset({"RequestExpired", "RequestTimeTooSkewed"})
UNKNOWN_KEY = frozenset({"InvalidClientTokenId", "InvalidAccessKeyId", "UnrecognizedClientException"})
WRONG_TOKEN = frozenset({"InvalidToken"})
WRONG_SECRET = frozenset({"SignatureDoesNotMatch", "InvalidSignatureException"})
CREDENTIALS = EXPIRED | CLOCK | UNKNOWN_KEY | WRONG_TOKEN | WRONG_SECRET

DENIED = frozenset({
    "AccessDenied", "AccessDeniedException", "AllAccessDisabled", "Forbidden", "UnauthorizedAccess", "403",
})
ELSEWHERE = frozenset({  # the bucket is in another region than the one asked
    "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "307",
})
TRANSIENT = frozenset({
    "SlowDown", "ServiceUnavailable", "InternalError", "InternalFailure", "OperationAborted", "RequestTimeout",
    "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestThrottled", "TooManyRequests",
    "TooManyRequestsException", "429", "500", "502", "503", "504",
})
# fmt: on
