"""Triton building blocks of the scans: addressing tokens, and loading them ahead of their use."""

import triton
import triton.language as tl


@triton.jit
def _unpack(words):
    """[..., 2 N] in fp32 from N words of two bf16 each: bf16 is the upper half of fp32."""
    low = (words << 16).to(tl.float32, bitcast=True)
    high = (words & -65536).to(tl.float32, bitcast=True)
    return tl.interleave(low, high)


@triton.jit
def _load_run(ptr, STRIDE: tl.constexpr, COUNT: tl.constexpr, mask):
    """COUNT loads at ptr, ptr + STRIDE, … as a tuple."""
    values = ()
    for u in tl.static_range(COUNT):
        values = values + (tl.load(ptr + u * STRIDE, mask=mask),)
    return values


@triton.jit
def load_group(ptrs, ROWS: tl.constexpr, LANES: tl.constexpr, COUNT: tl.constexpr, mask):
    """COUNT tokens of every tensor: values[tensor][token].

    The first LANES pointers hold one address a channel (see ``addressed``), the others one a token.
    """
    values = ()
    for i in tl.static_range(len(ROWS)):
        if i < LANES:
            values = values + (_load_run(ptrs[i], ROWS[i], COUNT, mask),)
        else:
            values = values + (_load_run(ptrs[i], ROWS[i], COUNT, None),)
    return values


@triton.jit
def load_groups(
    ptrs, ROWS: tl.constexpr, LANES: tl.constexpr, COUNT: tl.constexpr, GROUPS: tl.constexpr, mask
):
    """GROUPS groups that follow each other: the scans' store of tokens that were asked for.

    A group's place is filled again as soon as it has been worked on, so that GROUPS - 1 groups of
    work lie between a load and its use. The compiler may not move a load over an earlier store by
    itself, and the assembler would move it behind the work that follows: the work on a group sits
    in an inner loop of ``once`` = 1 iterations, a number only known at run time.
    """
    groups = ()
    for k in tl.static_range(GROUPS):
        groups = groups + (load_group(move(ptrs, ROWS, k * COUNT), ROWS, LANES, COUNT, mask),)
    return groups


@triton.jit
def widen_run(run):
    """A tensor's tokens in fp32."""
    wide = ()
    for u in tl.static_range(len(run)):
        if run[u].dtype == tl.int32:
            wide = wide + (_unpack(run[u]),)
        else:
            wide = wide + (run[u].to(tl.float32),)
    return wide


@triton.jit
def widen(values):
    """A group in fp32, done just before its use: it waits for the loads."""
    wide = ()
    for i in tl.static_range(len(values)):
        wide = wide + (widen_run(values[i]),)
    return wide


@triton.jit
def move(ptrs, ROWS: tl.constexpr, COUNT):
    """Every pointer, COUNT tokens further on."""
    moved = ()
    for i in tl.static_range(len(ROWS)):
        moved = moved + (ptrs[i] + COUNT * ROWS[i],)
    return moved


@triton.jit
def addressed(first, BLOCK_D: tl.constexpr, PAIRED: tl.constexpr):
    """Offsets of the channels from ``first`` on, or of the words that hold two each."""
    if PAIRED:
        offsets = first // 2 + tl.arange(0, BLOCK_D // 2)
    else:
        offsets = first + tl.arange(0, BLOCK_D)
    return offsets


@triton.jit
def lanes_end(group, WIDTH: tl.constexpr, PAIRED: tl.constexpr):
    """The first of ``addressed``'s offsets that is another group's."""
    end = (group + 1) * WIDTH
    if PAIRED:
        end = end // 2
    return end


@triton.jit
def as_words(ptr, PAIRED: tl.constexpr):
    """A pointer to bf16 as one to words of two, when PAIRED; ROWS then count words."""
    if PAIRED:
        result = ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    else:
        result = ptr
    return result


@triton.jit
def groups_of(lanes, group, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, PAIRED: tl.constexpr):
    """The group of a block, or, of a block of several groups, that of every one of its ``lanes``.

    A word's two channels are of one group.
    """
    if BLOCK_D >= 2 * WIDTH:
        if PAIRED:
            result = lanes // (WIDTH // 2)
        else:
            result = lanes // WIDTH
    else:
        result = group
    return result


@triton.jit
def spread(b, TWICE: tl.constexpr):
    """A group's numbers for its channels: TWICE when there is one for every two channels."""
    if TWICE:
        result = tl.interleave(b, b)
    else:
        result = b
    return result
