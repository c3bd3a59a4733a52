"""A stand-in for AWS on loopback: moto's server with IAM on, so that wrong keys are refused by STS and S3 alike.

Where the shards in it come from stands in generator.py; who starts it, in local.py. It lives in a child process and in
memory, and ends with the process that started it.
"""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from types import TracebackType
from typing import Any, Self

from deployments.processes import LOOPBACK, Children, start_on_free_port

REGION = "us-east-1"
BUCKET_ID = "c0ffee00d0c0dc0ab5ab1e0f5ca1ab1e"  # a name as the real ones: 32 hexadecimal digits
ACCOUNT = "123456789012"  # moto's
USER = "shardline"

ADMIN_POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
USER_POLICY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": ["s3:*", "sts:GetCallerIdentity"], "Resource": "*"}],
}
# Actions that moto lets pass before it begins to check: the admin's create_user, create_access_key, put_user_policy.
FREE_ACTIONS = 3


@dataclass(frozen=True)
class Keys:
    """An access key of a user in the stand-in."""

    access_key_id: str
    secret_access_key: str

    def __repr__(self) -> str:
        return f"Keys(access_key_id={self.access_key_id!r})"


class StandIn(AbstractContextManager["StandIn"]):
    """The stand-in as a context manager: entered, it listens; left, it is gone with all that was in it.

    Attributes:
        endpoint: its URL, for S3, STS and IAM.
        bucket_id, region, bucket: the names that a run finds its bucket by; the bucket is made on entering.
        keys: those of a user who may use S3 and ask STS who it is.
        environment: what a process needs to find and use it, with every other AWS setting switched off.
    """

    def __init__(self, log: Path, bucket_id: str = BUCKET_ID, region: str = REGION) -> None:
        self.bucket_id = bucket_id
        self.region = region
        self.bucket = f"dc-taxi-{bucket_id}-{region}"
        self._log = log
        self._children = Children()

    def __enter__(self) -> Self:
        self._children.__enter__()
        try:
            self.endpoint = self._start()
            self._admin_keys = self._create_user("admin", ADMIN_POLICY, Keys("none", "none"))
            self.keys = self.create_user(USER, USER_POLICY)
            self.create_bucket(self.bucket)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._children.__exit__(kind, error, trace)

    @property
    def environment(self) -> dict[str, str]:
        """Settings that lead a process to the stand-in and to nothing else of AWS; they hold its secret key."""
        return self.environment_of(self.keys)

    def environment_of(self, keys: Keys) -> dict[str, str]:
        """The environment for another user's keys."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": keys.access_key_id,
            "AWS_SECRET_ACCESS_KEY": keys.secret_access_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "BUCKET_ID": self.bucket_id,
        }

    def create_user(self, name: str, policy: Mapping[str, Any]) -> Keys:
        """A new user with this policy; its access key."""
        return self._create_user(name, policy, self._admin_keys)

    def create_bucket(self, name: str) -> None:
        """A new bucket, in the stand-in's region; AWS wants at least three characters in its name."""
        self.client("s3", self._admin_keys).create_bucket(
            Bucket=name,
            **(
                {}
                if self.region == REGION  # the one region that S3 does not accept as a constraint
                else {"CreateBucketConfiguration": {"LocationConstraint": self.region}}
            ),
        )

    def client(self, service: str, keys: Keys | None = None) -> Any:
        """A boto3 client for the stand-in, untouched by the environment, profiles and files of whoever asks."""
        import boto3
        import botocore.config
        import botocore.session

        core = botocore.session.Session(session_vars=_settings_from_nowhere())
        chosen = keys or self.keys
        session = boto3.Session(
            aws_access_key_id=chosen.access_key_id,
            aws_secret_access_key=chosen.secret_access_key,
            region_name=self.region,
            botocore_session=core,
        )
        config = botocore.config.Config(
            proxies={}, s3={"addressing_style": "path"}, connect_timeout=5, max_pool_connections=32
        )
        return session.client(service, endpoint_url=self.endpoint, config=config)

    def _start(self) -> str:
        """Start moto's server on a free port; its URL."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MOTO_"))}
        environment["INITIAL_NO_AUTH_ACTION_COUNT"] = str(FREE_ACTIONS)

        def start(port: int) -> Popen[bytes]:
            command = [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)]
            return self._children.start_server(command, environment, self._log)

        port = start_on_free_port(start, "/moto-api/data.json", self._log, self._children)
        return f"http://{LOOPBACK}:{port}"

    def _create_user(self, name: str, policy: Mapping[str, Any], by: Keys) -> Keys:
        iam = self.client("iam", by)
        iam.create_user(UserName=name)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps(policy))
        return Keys(key["AccessKeyId"], key["SecretAccessKey"])


def _settings_from_nowhere() -> dict[str, tuple[Any, ...]]:
    """botocore's table of settings without the environment variables and files that they usually come from."""
    import botocore.session

    table = {
        name: (in_file, None, default, convert)
        for name, (in_file, _, default, convert) in botocore.session.Session.SESSION_VARIABLES.items()
    }
    nowhere = (None, None, os.devnull, None)
    return table | {"config_file": nowhere, "credentials_file": nowhere}
