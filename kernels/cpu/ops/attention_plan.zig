//! How attention is cut into items, and where each sequence's partial results lie in the workspace.
//!
//! Two things are kept apart. *Chunks* of `chunk` token positions of a source (the prefix, then the
//! main cache) define the arithmetic: each gives a partial that is folded into the row's result in
//! order. *Items* only share chunks out: an item does one block of query rows of one KV head over a
//! run of chunks. Where one run holds all chunks of a sequence the item folds them itself,
//! otherwise partials go through the workspace and a second phase folds them. Item sizes may
//! therefore depend on the load and the number of threads, while the bits may not.
const std = @import("std");
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");
const layout = @import("../layout.zig");

/// Token positions of a source that are reduced by themselves. Changing it changes results in the
/// last bits.
pub const chunk: u32 = 512;

/// Query rows (new rows x GQA group) that one item attends together: with their sums they fit in
/// the second-level cache beside a chunk, and compute far outweighs reading K and V again for the
/// next block.
pub const block_rows: u32 = 48;

/// A sequence with more query rows to a KV head than this is never split along its tokens: its row
/// blocks are items enough, and the workspace stays small in prefill.
const split_rows: u32 = 128;

/// Items a thread gets at least, where there are chunks enough.
const items_per_thread = 16;

/// Tokens below which a run of chunks is not worth an item and a merge of its own.
const split_tokens: u32 = 512;

pub const Desc = types.AttentionDesc;

/// f32 of one partial: d sums, the maximum, the sum of weights, padding to a cache line.
pub fn partialFloats(head_dim: u32) u32 {
    return head_dim + 16;
}

/// One sequence's work, in the workspace's head: written by plan, read by every item.
pub const Sequence = extern struct {
    /// byte offset of its partials (kv head, row, chunk) from the workspace's start
    partials: u64,
    first_item: u32,
    first_merge: u32,
    first_row: u32,
    /// query rows to one KV head: new rows x GQA group
    rows: u32,
    /// position of the first new row
    position: u32,
    blocks: u32,
    /// runs of chunks, `run_chunks` each but the last
    runs: u32,
    run_chunks: u32,
    prefix_chunks: u32,
    /// main chunks, counted from `first_chunk` of the main cache
    main_chunks: u32,
    first_chunk: u32,
    prefix_tokens: u32,
    /// tokens in the main cache, new ones included
    length: u32,
    /// tokens that are read at all, prefix included
    tokens: u32,

    pub fn chunks(self: *const Sequence) u32 {
        return self.prefix_chunks + self.main_chunks;
    }
};

pub fn sequences(desc: *const Desc) []Sequence {
    const table: [*]Sequence = @ptrFromInt(desc.workspace.data);
    return table[0..desc.kv_len.shape[0]];
}

pub fn group(desc: *const Desc) u32 {
    return desc.q.shape[1] / desc.cache.kv_heads;
}

/// First token of the main cache that a row at `position` of sequence `s` reads.
pub fn mainStart(desc: *const Desc, s: usize, position: u32) u32 {
    if (desc.window > 0) {
        return if (slides(desc, position)) position + 1 - desc.window else 0;
    }
    const starts = kernel_mod.optional(i32, desc.tail_start) orelse return 0;
    return if (hasPrefixList(desc)) @intCast(@max(starts[s], 0)) else 0;
}

/// End of the prefix tokens that a row at `position` of sequence `s` reads.
pub fn prefixEnd(desc: *const Desc, s: usize, position: u32) u32 {
    if (desc.window > 0) return if (slides(desc, position)) desc.sinks else 0;
    const lengths = kernel_mod.optional(i32, desc.prefix_len) orelse return 0;
    return if (hasPrefixList(desc)) @intCast(@max(lengths[s], 0)) else 0;
}

fn slides(desc: *const Desc, position: u32) bool {
    return position + 1 > desc.sinks + desc.window;
}

/// Whether the prefix is another cache or an index list.
fn hasPrefixList(desc: *const Desc) bool {
    return desc.prefix_cache.data != 0 or desc.indices.data != 0;
}

/// Fills the table and returns the number of items of the first phase.
pub fn plan(desc: *const Desc, threads: u32) u32 {
    const table = sequences(desc);
    var units: u64 = 0;
    for (table, 0..) |*sequence, s| {
        sequence.* = measure(desc, s);
        units += @as(u64, desc.cache.kv_heads) * sequence.blocks * sequence.chunks();
    }
    const target: u32 = @intCast(@max(units / (@as(u64, threads) * items_per_thread), 1));
    var items: u32 = 0;
    var partials: u64 = headBytes(table.len);
    for (table) |*sequence| {
        cut(sequence, target);
        sequence.first_item = items;
        items += desc.cache.kv_heads * sequence.blocks * sequence.runs;
        sequence.partials = partials;
        if (sequence.runs > 1) partials += partialBytes(desc, sequence.rows, sequence.chunks());
    }
    return items;
}

/// Assigns the merge items (one a KV head of a split sequence) and returns their number.
pub fn planMerge(desc: *const Desc) u32 {
    var items: u32 = 0;
    for (sequences(desc)) |*sequence| {
        sequence.first_merge = items;
        if (sequence.runs > 1) items += desc.cache.kv_heads;
    }
    return items;
}

fn measure(desc: *const Desc, s: usize) Sequence {
    var result = std.mem.zeroes(Sequence);
    const starts = kernel_mod.pointer(i32, desc.q_start);
    const length = kernel_mod.pointer(i32, desc.kv_len)[s];
    const new_rows = starts[s + 1] - starts[s];
    if (new_rows <= 0 or length < new_rows) return result;
    const last: u32 = @intCast(length - 1);
    result.first_row = @intCast(starts[s]);
    result.position = @intCast(length - new_rows);
    result.rows = @as(u32, @intCast(new_rows)) * group(desc);
    result.blocks = ceilDiv(result.rows, block_rows);
    result.prefix_tokens = prefixEnd(desc, s, last);
    result.prefix_chunks = ceilDiv(result.prefix_tokens, chunk);
    const start = @min(mainStart(desc, s, result.position), last + 1);
    result.length = last + 1;
    result.tokens = result.prefix_tokens + result.length - start;
    result.first_chunk = start / chunk;
    result.main_chunks = ceilDiv(last + 1, chunk) - result.first_chunk;
    return result;
}

/// Shares a sequence's chunks out in runs of about `target`.
fn cut(sequence: *Sequence, target: u32) void {
    const chunks = sequence.chunks();
    if (chunks == 0) {
        sequence.blocks = 0;
        return;
    }
    const worthwhile = @max(sequence.tokens / split_tokens, 1);
    const wanted = if (sequence.rows > split_rows) 1 else @min(ceilDiv(chunks, target), worthwhile);
    sequence.run_chunks = ceilDiv(chunks, wanted);
    sequence.runs = ceilDiv(chunks, sequence.run_chunks);
}

/// An item's place: sequence, KV head, block of rows, run of chunks.
pub const Place = struct { sequence: *const Sequence, s: u32, head: u32, block: u32, run: u32 };

/// Later blocks of a prefill see more tokens, so they come first: the longest items start early.
pub fn place(desc: *const Desc, item: u32) Place {
    const s = find(desc, item, "first_item");
    const sequence = &sequences(desc)[s];
    const index = item - sequence.first_item;
    const per_block = desc.cache.kv_heads * sequence.runs;
    return .{
        .sequence = sequence,
        .s = s,
        .head = index % per_block / sequence.runs,
        .block = sequence.blocks - 1 - index / per_block,
        .run = index % sequence.runs,
    };
}

pub const MergePlace = struct { sequence: *const Sequence, head: u32 };

pub fn mergePlace(desc: *const Desc, item: u32) MergePlace {
    const sequence = &sequences(desc)[find(desc, item, "first_merge")];
    return .{ .sequence = sequence, .head = item - sequence.first_merge };
}

/// The last sequence that starts at or before `item`; sequences without items share their
/// successor's start.
fn find(desc: *const Desc, item: u32, comptime field: []const u8) u32 {
    const table = sequences(desc);
    var low: u32 = 0;
    var high: u32 = @intCast(table.len);
    while (high - low > 1) {
        const middle = (low + high) / 2;
        if (@field(table[middle], field) <= item) low = middle else high = middle;
    }
    return low;
}

/// The partial of (KV head, row, chunk 0); the chunks of a row follow one another.
pub fn partial(desc: *const Desc, sequence: *const Sequence, head: u32, row: u32) [*]f32 {
    const floats = @as(u64, partialFloats(desc.cache.head_dim)) * sequence.chunks();
    const index = (@as(u64, head) * sequence.rows + row) * floats;
    return @ptrFromInt(desc.workspace.data + sequence.partials + index * @sizeOf(f32));
}

fn partialBytes(desc: *const Desc, rows: u64, chunks: u64) u64 {
    const floats = partialFloats(desc.cache.head_dim);
    return desc.cache.kv_heads * rows * chunks * floats * @sizeOf(f32);
}

fn headBytes(count: usize) u64 {
    return std.mem.alignForward(u64, count * @sizeOf(Sequence), 64);
}

/// Upper bound from shapes alone: at most min(rows x group, b x split_rows) query rows of a KV head
/// are split, over as many chunks as the tables (or the window) can hold.
pub fn workspaceBytes(desc: *const Desc) u64 {
    const b = desc.kv_len.shape[0];
    const all_rows = @as(u64, desc.q.shape[0]) * group(desc);
    const rows = @min(all_rows, @as(u64, b) * split_rows);
    const capacity = desc.block_table.shape[1] * desc.cache.page_size;
    var main = ceilDiv(capacity, chunk);
    var prefix: u32 = 0;
    if (desc.window > 0) {
        const visible = @as(u64, desc.sinks) + desc.window + desc.q.shape[0];
        main = @min(main, @as(u32, @intCast(@min(visible / chunk + 2, std.math.maxInt(u32)))));
        prefix = ceilDiv(desc.sinks, chunk);
    } else if (desc.prefix_cache.data != 0) {
        prefix = ceilDiv(desc.prefix_table.shape[1] * desc.prefix_cache.page_size, chunk);
    } else if (desc.indices.data != 0) {
        prefix = ceilDiv(desc.indices.shape[2], chunk);
    }
    return headBytes(b) + partialBytes(desc, rows, main + prefix);
}

fn ceilDiv(a: u32, b: u32) u32 {
    return a / b + @intFromBool(a % b != 0);
}
