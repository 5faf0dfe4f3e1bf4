"""Who calls and what they may do: tokens, the calls that each one made, and RBAC over the applied roles."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.cluster.api_server.errors import Object, unauthorized
from tests.cluster.api_server.kinds import RBAC
from tests.cluster.api_server.store import Store

MASTERS = "system:masters"
EVERYBODY = "system:authenticated"
CALLS_MAX = 100_000
REVIEWS = ("authorization.k8s.io", "authentication.k8s.io")


class Call(NamedTuple):
    """One request, in the words of RBAC, and the status code of its answer."""

    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str = ""
    name: str = ""
    code: int = 0

    @property
    def rule(self) -> tuple[str, str, str, str]:
        """What a role must grant: (verb, group, resource, subresource)."""
        return self[:4]


@dataclass(frozen=True, slots=True)
class User:
    """Whom a token speaks for."""

    name: str
    groups: tuple[str, ...] = ()

    @classmethod
    def service_account(cls, namespace: str, name: str) -> User:
        """The user that a service account is."""
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", EVERYBODY)
        return cls(f"system:serviceaccount:{namespace}:{name}", groups)


@dataclass
class Access:
    """The tokens that were given out, and what came with each."""

    store: Store
    is_enforced: bool = False
    users: dict[str, User] = field(default_factory=dict)
    calls: list[tuple[str, Call]] = field(default_factory=list)

    def give_token(self, user: User, token: str | None = None) -> str:
        """A token that speaks for the user."""
        token = token or secrets.token_urlsafe(24)
        self.users[token] = user
        return token

    def identify(self, authorization: str) -> tuple[str, User]:
        """The token and its user, or 401."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or token.strip() not in self.users:
            raise unauthorized()
        return token.strip(), self.users[token.strip()]

    def note(self, token: str, call: Call) -> None:
        """Keep what was asked, up to a bound."""
        if len(self.calls) < CALLS_MAX:
            self.calls.append((token, call))

    def may(self, user: User, call: Call) -> bool:
        """Whether the applied roles grant it; without enforcement everything is granted."""
        if not self.is_enforced or MASTERS in user.groups:
            return True
        if call.group in REVIEWS and call.verb == "create":
            return True  # everybody may ask about themselves
        return any(_grants(rule, call) for rule in self.rules_of(user, call.namespace))

    def rules_of(self, user: User, namespace: str) -> list[Object]:
        """Every rule that is bound to the user, cluster-wide or in the namespace."""
        with self.store.lock:
            bindings = [(b, "") for b in self.store.all(f"{RBAC}/clusterrolebindings")]
            if namespace:
                bindings += [(b, namespace) for b in self.store.all(f"{RBAC}/rolebindings", namespace)]
            found: list[Object] = []
            for binding, where in bindings:
                if any(_is_subject(subject, user, where) for subject in binding.get("subjects") or []):
                    found += self._role(binding["roleRef"], where).get("rules") or []
            return found

    def _role(self, reference: Object, namespace: str) -> Object:
        if reference["kind"] == "ClusterRole":
            return self.store.get(f"{RBAC}/clusterroles", ("", reference["name"])) or {}
        return self.store.get(f"{RBAC}/roles", (namespace, reference["name"])) or {}


def _is_subject(subject: Object, user: User, namespace: str) -> bool:
    if subject["kind"] == "ServiceAccount":
        where = subject.get("namespace") or namespace
        return user.name == f"system:serviceaccount:{where}:{subject['name']}"
    return subject["name"] == user.name if subject["kind"] == "User" else subject["name"] in user.groups


def _grants(rule: Object, call: Call) -> bool:
    resource = f"{call.resource}/{call.subresource}" if call.subresource else call.resource
    names = rule.get("resourceNames") or []
    resources = {*(rule.get("resources") or [])}
    return (
        bool({call.verb, "*"} & {*(rule.get("verbs") or [])})
        and bool({call.group, "*"} & {*(rule.get("apiGroups") or [])})
        and bool({resource, "*", f"*/{call.subresource}" if call.subresource else resource} & resources)
        and (not names or call.name in names)
    )


def refusal(user: User, call: Call) -> str:
    """Why, in the words that `kubectl` prints."""
    resource = f"{call.resource}/{call.subresource}" if call.subresource else call.resource
    where = f'in the namespace "{call.namespace}"' if call.namespace else "at the cluster scope"
    return f'User "{user.name}" cannot {call.verb} resource "{resource}" in API group "{call.group}" {where}'
