# SPDX-License-Identifier: BSD-2-Clause
"""Bugs in the secure world's storage, where the normal world is the attacker."""

from __future__ import annotations

from collections.abc import Callable

from specs.mutants.mechanism import Mutant, Patch


def _any_genuine_record(patch: Patch) -> None:
    from secure_world.apps.sealed import Reference, Sealer

    def open_current(
        self: Sealer, record: bytes, kind: int, position: int, wanted: Reference
    ) -> bytes:
        return self.open(record, kind, position)[2]

    patch.attribute(Sealer, "open_current", open_current)


def _no_anchor_digest(patch: Patch) -> None:
    from secure_world.apps import object_store

    class Forgiving(bytes):
        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = bytes.__hash__

    real = object_store._Anchor

    def anchor(generation: int, records: int, digest: bytes, store: bytes) -> object:
        return real(generation, records, Forgiving(digest), store)

    patch.attribute(object_store, "_Anchor", anchor)


def _write_in_place(patch: Patch) -> None:
    from secure_world.apps import object_store
    from secure_world.apps.sealed import HOLE, Reference

    def wrapper(original: Callable[..., object]) -> Callable[..., object]:
        def store(self: object, position: int, kind: int, old: Reference, data: bytes) -> object:
            return original(self, position, kind, HOLE, data)

        return store

    patch.wrap(object_store._ObjectFile, "_store", wrapper)


def _one_key_for_all_partitions(patch: Patch) -> None:
    from secure_world.apps import object_store
    from secure_world.ta import TaEnvironment

    def wrapper(original: Callable[..., None]) -> Callable[..., None]:
        def init(self: object, env: TaEnvironment) -> None:
            client, env.client_id = env.client_id, 0
            try:
                original(self, env)
            finally:
                env.client_id = client

        return init

    patch.wrap(object_store.ObjectStore, "__init__", wrapper)


def _repeated_nonce(patch: Patch) -> None:
    from secure_world.apps.sealed import Sealer

    def wrapper(original: Callable[..., object]) -> Callable[..., object]:
        def seal(
            self: Sealer, kind: int, position: int, generation: int, nonce: bytes, block: bytes
        ) -> object:
            own = position.to_bytes(4, "little") + generation.to_bytes(8, "little")
            return original(self, kind, position, generation, own, block)

        return seal

    patch.wrap(Sealer, "seal", wrapper)


def _missing_directory_is_empty(patch: Patch) -> None:
    from secure_world.apps import object_store
    from secure_world.ta import TeeError
    from smccc.constants import tee

    def wrapper(original: Callable[..., object]) -> Callable[..., object]:
        async def load(self: object) -> object:
            try:
                return await original(self)  # type: ignore[misc]
            except TeeError as error:
                if error.code != tee.TEE_ERROR_SECURITY:
                    raise
                return object_store._Directory(object_store._Anchor(0, 0, b"", bytes(16)), 1, {})

        return load

    patch.wrap(object_store.ObjectStore, "_load", wrapper)


MUTANTS = (
    Mutant(
        id="secure-storage.any-genuine-record",
        story="Checks that a record is authentic, but not that it is the newest one: old contents"
        " of an object can be played back.",
        bug_class=24,
        breaks=("secure-storage.roll-back",),
        plant=_any_genuine_record,
    ),
    Mutant(
        id="secure-storage.generation-is-enough",
        story="Compares the directory's generation with the anchor but not its digest: records of"
        " an abandoned transaction with the same number pass.",
        bug_class=6,
        breaks=("secure-storage.roll-back",),
        plant=_no_anchor_digest,
    ),
    Mutant(
        id="secure-storage.write-in-place",
        story="Writes blocks over the ones that count: when the normal world fails half-way, the"
        " old contents are gone and the new ones are not there.",
        bug_class=5,
        breaks=("secure-storage.atomic",),
        plant=_write_in_place,
    ),
    Mutant(
        id="secure-storage.partition-forgotten",
        story="Derives keys and file names from the TA alone: two guests on one file service read"
        " each other's objects.",
        bug_class=24,
        breaks=("I5",),
        plant=_one_key_for_all_partitions,
    ),
    Mutant(
        id="secure-storage.counter-nonce",
        story="Makes the nonce from position and generation: a transaction that failed is repeated"
        " with the same nonce and other contents, and AES-GCM loses everything.",
        bug_class=5,
        breaks=("secure-storage.secret",),
        plant=_repeated_nonce,
    ),
    Mutant(
        id="secure-storage.missing-is-empty",
        story="Treats a directory that the normal world lost as a new, empty store: deleting the"
        " files is a roll back to the beginning.",
        bug_class=14,
        breaks=("secure-storage.roll-back",),
        plant=_missing_directory_is_empty,
    ),
)
