"""Check that an output has the frames of its source and the packets of all other streams, each at its time."""

from __future__ import annotations

import logging
import math
from bisect import bisect, bisect_left
from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from statistics import median

from vidup.errors import VerifyError
from vidup.frame import MediaInfo
from vidup.media import containers, sound, streams, texts
from vidup.media.conversion import StreamPlan
from vidup.media.delivery import Delivery
from vidup.media.opening import open_input
from vidup.media.texts import Shown
from vidup.proof.findings import Findings
from vidup.proof.tracks import Track, tracks

log = logging.getLogger(__name__)

_LONGEST_FRAME = Fraction(1, 5)  # seconds: frames of lossless audio may be longer, and are not padded
_NEAR = Fraction(3, 1000)  # seconds by which the times of texts may be rounded
_AUDIBLE = Fraction(9, 10)  # the share of the source's audible time that has to be audible in re-encoded audio


def check_times(output: Path, made: MediaInfo, expected: Sequence[int], delivery: Delivery) -> Fraction:
    """Check the time of every frame; returns the shift of all streams by the container, in seconds."""
    tick, unit = delivery.container.tick or Fraction(0), delivery.unit
    # In integers, which are faster than fractions: a film has hundreds of thousands of frames.
    fine = math.lcm(made.time_base.denominator, unit.denominator, 2 * tick.denominator)
    found = [time * int(made.time_base * fine) for time in made.pts]
    wanted = [time * int(unit * fine) for time in expected]
    rounding, shift = int(tick * fine), 0
    if rounding and found[0] - wanted[0] > rounding // 2:
        # Matroska cannot begin below 0: all streams are shifted by the time of the first packet that would.
        # Each time is rounded: the median distance is more exact than the first.
        usual = median(got - due for got, due in zip(found[:1000], wanted, strict=False))
        shift = round(usual / rounding) * rounding
        if shift > _below_zero(delivery) * fine + rounding:
            shift = 0
    if len(found) != len(wanted):
        where = _first_gap(found, wanted, fine, shift)
        raise VerifyError(f"{output}: holds {len(found)} frames, expected {len(wanted)}{where}")
    # Other programs shift streams by parts of a tick, and then round again.
    limit = rounding // 2 if shift == 0 or unit % tick == 0 else rounding
    for index, (got, due) in enumerate(zip(found, wanted, strict=True)):
        if abs(got - shift - due) > limit:
            raise VerifyError(
                f"{output}: frame {index} is at {got / fine:.6f} s, expected {(due + shift) / fine:.6f} s"
            )
    return Fraction(shift, fine)


def _first_gap(found: Sequence[int], wanted: Sequence[int], fine: int, shift: int) -> str:
    """The first time at which frames differ, in words; all times are in units of 1/`fine` s."""
    for got, due in zip_longest(found, wanted):
        if got is None or due is None or abs(got - shift - due) * 1000 > fine:
            return "" if due is None else f"; the first that differs should be at {due / fine:.6f} s"
    return ""


def _below_zero(delivery: Delivery) -> Fraction:
    """How far before 0 the first packet may be, in seconds."""
    copied = streams.below_zero(delivery.info, _with_packets(delivery), delivery.trim)
    # Re-encoded audio begins with its encoder's delay: at most 2,112 samples (AAC).
    encoded = any(plan.action == "convert" and plan.kind == "audio" for plan in delivery.streams)
    return max(copied, -delivery.times[0] * delivery.unit) + (Fraction(1, 20) if encoded else 0)


def _with_packets(delivery: Delivery) -> list[StreamPlan]:
    """The plans of the streams whose packets have to be in the output."""
    return [plan for plan in delivery.streams if plan.action in ("copy", "convert") and plan.kind != "attachment"]


def check_streams(
    output: Path, made: MediaInfo, delivery: Delivery, shift: Fraction, findings: Findings
) -> tuple[list[str], dict[int, int]]:
    """Check that every stream is there, with its packets at their times.

    Returns:
        What was done with each, in words, and index in the source -> in the output.
    """
    plans = _with_packets(delivery)
    here = tracks(delivery.info, [plan.index for plan in plans], delivery.trim)
    others = [s.index for s in made.streams if s.index != made.video_index and s.kind != "attachment"]
    there = tracks(made, others, None)
    kinds = {index: made.streams[index].kind for index in there}
    kept = []
    # A muxer may leave out a stream that has no packet in this part.
    places = _counterparts([plan for plan in plans if here[plan.index].pts], here, there, kinds)
    for plan in delivery.streams:
        if plan in plans:
            if not here[plan.index].pts:
                continue
            with findings.of(f"stream {plan.index}"):
                found = places.get(plan.index)
                if found is None:
                    raise VerifyError(f"{output}: stream {plan.index} ({plan.name}) is missing")
                if plan.action == "copy":
                    kept.append(_check_copy(made, plan, here[plan.index], there[found], shift))
                elif plan.kind == "subtitle":
                    kept.append(_check_texts(made, plan, here[plan.index], there[found], shift))
                else:
                    kept.append(_check_sound(made, plan, delivery, found, shift))
        elif plan.action == "drop":
            kept.append(f"{plan.name}: left out: {plan.reason}")
    _check_attachments(output, delivery, findings)
    return kept, places


def _counterparts(
    plans: Sequence[StreamPlan], here: dict[int, Track], there: dict[int, Track], kinds: dict[int, str]
) -> dict[int, int]:
    """Index in the source -> in the output: by order within a kind where the packets are equal, then by equal packets,
    then the remaining ones in order.
    """
    found: dict[int, int] = {}

    def equal(plan: StreamPlan, index: int) -> bool:
        return bool(there[index].whole.digest() == here[plan.index].whole.digest())

    for kind in set(kinds.values()):
        wanted = [plan for plan in plans if plan.kind == kind]
        given = [index for index, other in kinds.items() if other == kind]
        for plan, index in zip(wanted, given, strict=False):
            if equal(plan, index) or (plan.action == "convert" and len(wanted) == len(given)):
                found[plan.index] = index
        for same in (True, False):
            for plan in wanted:
                free = [i for i in given if i not in found.values() and (not same or equal(plan, i))]
                if plan.index not in found and free:
                    found[plan.index] = free[0]
    return found


def _check_copy(made: MediaInfo, plan: StreamPlan, before: Track, after: Track, shift: Fraction) -> str:
    """Compare the packets of a copied stream; returns what was done with it, in words."""
    name, done = f"{made.path}: stream {plan.index} ({plan.name})", f"{plan.name}: {len(before.pts)} packets equal"
    tolerance = 2 * max(before.unit, after.unit, Fraction(1, 100_000))
    if before.codec.startswith("pcm_"):  # mov stores samples, not packets
        if before.whole.digest() != after.whole.digest():
            raise VerifyError(f"{name}: its samples differ from the input's")
        begins = after.begin() - before.begin() - shift
        if abs(begins) > tolerance:
            raise VerifyError(f"{name}: is {float(begins):.4f} s late")
        return done
    for index, (mine, theirs) in enumerate(zip_longest(before.digests, after.digests)):
        if mine != theirs and before.codec != after.codec:
            raise VerifyError(f"{name}: is {after.codec}, expected the input's own packets")
        if mine != theirs:
            count = f" (it holds {len(after.digests)} packets, expected {len(before.digests)})"
            raise VerifyError(f"{name}: packet {index} differs from the input's{'' if mine and theirs else count}")
    # In integers, as in `check_times`.
    fine = math.lcm(*(part.denominator for part in (after.tick, before.tick, shift, tolerance)))
    ticks = [int(part * fine) for part in (after.tick, before.tick, shift, tolerance)]
    for index, (time, found) in enumerate(zip(before.pts, after.pts, strict=True)):
        late = found * ticks[0] - time * ticks[1] - ticks[2]
        if abs(late) > ticks[3]:
            raise VerifyError(f"{name}: packet {index} is {late / fine:.4f} s late")
    return done


def _check_sound(made: MediaInfo, plan: StreamPlan, delivery: Delivery, index: int, shift: Fraction) -> str:
    """Compare the audible part of re-encoded audio, stream `index` of the output, with that of its source.

    Returns:
        What was done with it, in words, with differences of more than a frame of audio. They are no errors: containers
        round times, and decoders fill in what is lost.

    Raises:
        VerifyError: it is silent.
    """
    before = sound.heard(delivery.info, plan.index, plan.name, delivery.trim)
    after = sound.heard(made, index, plan.name, None)
    name, done = f"stream {plan.index} ({plan.name}), converted to {plan.encoder},", f"{plan.name}: converted"
    if before is None:
        return done
    if after is None or (before.audible and not after.audible):
        raise VerifyError(f"{made.path}: {name} is {'empty' if after is None else 'silent'}")
    allowed = min(after.frame, _LONGEST_FRAME) + 2 * (delivery.container.tick or 0) + (before.end - before.begin) / 1000
    differences = []
    for what, late in (("begins", after.begin - before.begin - shift), ("ends", after.end - before.end - shift)):
        if abs(late) > allowed:
            differences.append(f"{what} {abs(float(late)):.3f} s {'late' if late > 0 else 'early'}")
    if after.audible < before.audible * _AUDIBLE:
        differences.append(f"is silent for {float(before.audible - after.audible):.3f} s where its source is not")
    if not differences:
        return done
    words = " and ".join(differences)
    log.warning("%s: %s %s", delivery.info.path, name, words)
    return f"{done}; it {words}"


def _check_texts(made: MediaInfo, plan: StreamPlan, before: Track, after: Track, shift: Fraction) -> str:
    """Check that the same words are shown at each moment; texts without words, such as drawings, may be missing.

    How the words are distributed to texts is not compared: in mp4, overlapping texts become one.
    """
    mine = texts.ended(before.shown)
    theirs = [Shown(text.begin - shift, text.end - shift, text.what) for text in texts.ended(after.shown)]
    moments = _moments(sorted(time for text in (*mine, *theirs) for time in (text.begin, text.end)))
    for moment, wanted, found in zip(moments, _standing(mine, moments), _standing(theirs, moments), strict=True):
        if wanted != found:
            name = f"{made.path}: stream {plan.index} ({plan.name}), converted to {plan.encoder},"
            raise VerifyError(f"{name} shows {found!r} at {float(moment + shift):.3f} s, expected {wanted!r}")
    return f"{plan.name}: converted"


def _moments(changes: Sequence[Fraction]) -> list[Fraction]:
    """The moments just before and after texts appear or vanish, without those at which rounding decides."""
    moments = sorted({side for change in changes for side in (change - _NEAR, change + _NEAR)})
    return [moment for moment in moments if bisect(changes, moment - _NEAR) == bisect_left(changes, moment + _NEAR)]


def _standing(shown: Sequence[Shown], moments: Sequence[Fraction]) -> list[str]:
    """The words that are shown at each moment."""
    coming, standing, found = deque(shown), list[Shown](), []
    for moment in moments:
        while coming and coming[0].begin <= moment:
            standing.append(coming.popleft())
        standing = [text for text in standing if text.end > moment]
        found.append("".join(text.what for text in standing))
    return found


def _check_attachments(output: Path, delivery: Delivery, findings: Findings) -> None:
    with open_input(delivery.info.path, whole=delivery.info.unlisted) as source, open_input(output) as written:
        found = [stream for stream in written.streams if stream.type == "attachment"]
        covers = [stream for stream in written.streams if containers.is_cover(stream)]
        data = {bytes(stream.data) for stream in found}
        for plan in delivery.streams:
            stream, name = source.streams[plan.index], f"{output}: stream {plan.index} ({plan.name})"
            with findings.of(f"stream {plan.index}"):
                if plan.action == "copy" and plan.kind == "attachment" and bytes(stream.data) not in data:
                    raise VerifyError(f"{name} is missing, or differs from the input's")
                if containers.is_cover(stream) and plan.action in ("copy", "attach") and not covers:
                    raise VerifyError(f"{name} is missing")
