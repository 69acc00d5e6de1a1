"""What is asked of a factory, and what that means, given what the factory has now."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vmfork.errors import TemplateStale
from vmfork.factory.choice import Match, Want, spell_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.config import VMConfig
    from vmfork.factory.bases import Bases
    from vmfork.factory.choice import Choice
    from vmfork.hypervisor.base import Hardware
    from vmfork.image import ImageStore
    from vmfork.machine.request import ForkRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one caller asks for.

    `config` is `None` for nothing in particular, and `template` empty when none is named. `sizes` are asked for in
    place of those in the configuration.
    """

    config: VMConfig | None
    template: str
    sizes: Mapping[str, Any]
    fork: ForkRequest
    timeout_s: float | None
    begun: float = field(default_factory=time.monotonic)

    def left_s(self, default_s: float) -> float:
        """Seconds in which a machine that others make must be there."""
        limit_s = default_s if self.timeout_s is None else self.timeout_s
        return max(0.0, limit_s - (time.monotonic() - self.begun))

    def fork_for(self, have: Hardware, want: Want, choice: Choice) -> ForkRequest:
        """What is done in a machine of `have`: afterwards it has the size that is wanted, or what it had beyond that.

        A machine that is wanted as it is keeps its size. Raises `TemplateStale` when it has more than is wanted
        although no larger one was chosen.
        """
        wanted = want.sized_for(choice.base.kind.hardware)
        if choice.base is want.like and not self.sizes:
            return self.fork
        is_larger = have.cpus > wanted.cpus or have.memory_mib > wanted.memory_mib
        if is_larger and choice.match is not Match.LARGER:
            # The template was replaced between the choice and the taking.
            raise TemplateStale(choice.base.kind.name, "size", spell_size(have), spell_size(wanted))
        if have.cpus >= wanted.cpus and have.memory_mib >= wanted.memory_mib:
            return self.fork
        return replace(self.fork, cpus=max(have.cpus, wanted.cpus), memory_mib=max(have.memory_mib, wanted.memory_mib))


def find_want(request: Request, bases: Bases, own: VMConfig, *, images: ImageStore) -> Want:
    """What `request` asks for, in full. If it asks for nothing in particular, that is what the bases are now.

    `own` is the factory's configuration: it gives what says nothing of a machine, or all when nothing is known.
    """
    like, asked = None, request.config or own
    if request.config is None and (slot := bases.find_slot(request.template)) is not None:
        its_bases = (each.base for each in slot.watched)
        like = next((base for base in its_bases if request.template in ("", base.kind.template)), None)
        if like is not None:
            asked = like.kind.to_config(own)
        elif slot.past_config is not None:
            asked = slot.past_config.made_as(own)
    if request.sizes:
        # Room to grow beyond them is not asked for: it was that of another size.
        asked = replace(asked, **request.sizes, max_cpus=0, max_memory_mib=0)
    return Want.of(asked, images=images, like=like)
