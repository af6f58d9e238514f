//! Attention over the paged cache for prefill, decode and verification alike. All query rows that
//! share a KV head (new rows x GQA group) go over its K and V together, so each tile is read from
//! memory once. attention_plan.zig says how the work is cut and why a row's bits depend on its own
//! inputs only.
const std = @import("std");
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");
const block_mod = @import("attention_block.zig");
const plan_mod = @import("attention_plan.zig");
const source_mod = @import("attention_source.zig");
const tile_mod = @import("attention_tile.zig");

const Desc = plan_mod.Desc;
const chunk = plan_mod.chunk;
const block_rows = plan_mod.block_rows;

pub const attention: kernel_mod.Kernel = kernel_mod.kernel(Desc, &.{ Attend, Merge });

/// Bytes of workspace that any lengths within the descriptor's capacities can need.
pub fn attention_workspace_bytes(desc: *const Desc) callconv(.c) u64 {
    return plan_mod.workspaceBytes(desc);
}

const Attend = struct {
    pub fn plan(desc: *Desc, threads: u32) u32 {
        return plan_mod.plan(desc, threads);
    }

    pub fn run(desc: *const Desc, item: u32, scratch: *const kernel_mod.Scratch) void {
        switch (desc.cache.head_dim) {
            inline 64, 96, 128, 256 => |d| attendItem(d, desc, item, scratch),
            else => unreachable,
        }
    }
};

const Merge = struct {
    pub fn plan(desc: *Desc, _: u32) u32 {
        return plan_mod.planMerge(desc);
    }

    pub fn run(desc: *const Desc, item: u32, _: *const kernel_mod.Scratch) void {
        switch (desc.cache.head_dim) {
            inline 64, 96, 128, 256 => |d| mergeItem(d, desc, item),
            else => unreachable,
        }
    }
};

fn attendItem(
    comptime d: usize,
    desc: *const Desc,
    item: u32,
    scratch: *const kernel_mod.Scratch,
) void {
    comptime std.debug.assert(@sizeOf(block_mod.Block(d)) <= kernel_mod.scratch_bytes);
    const block: *block_mod.Block(d) = @ptrCast(@alignCast(scratch.data));
    const place = plan_mod.place(desc, item);
    const sequence = place.sequence;
    const first = place.block * block_rows;
    block.init(@min(block_rows, sequence.rows - first), desc.scale);
    const direct = sequence.runs == 1;
    if (direct) block.clearResults();
    const begin = place.run * sequence.run_chunks;
    const end = @min(begin + sequence.run_chunks, sequence.chunks());
    var source: Source = undefined;
    for (begin..end) |c| {
        if (c == begin or c == sequence.prefix_chunks) {
            source = .init(desc, &place, c < sequence.prefix_chunks);
            setRows(d, block, desc, &place, &source);
        }
        const leaves_prefix = c + 1 == sequence.prefix_chunks and c + 1 < end;
        const follow = if (leaves_prefix) firstMainTile(desc, &place) else null;
        source.attend(d, block, sequence, @intCast(c), @intCast(end), follow);
        if (direct) {
            block.foldChunk();
        } else for (0..block.rows) |r| {
            const partials = plan_mod.partial(desc, sequence, place.head, @intCast(first + r));
            block.storeChunk(r, &@as([*]block_mod.Result(d), @ptrCast(partials))[c]);
        }
    }
    if (direct) for (0..block.rows) |r| {
        block.results[r].store(outRow(desc, sequence, place.head, @intCast(first + r)));
    };
}

fn mergeItem(comptime d: usize, desc: *const Desc, item: u32) void {
    const place = plan_mod.mergePlace(desc, item);
    const sequence = place.sequence;
    const scale: tile_mod.Scale = .init(desc.scale);
    for (0..sequence.rows) |row| {
        const partials: [*]block_mod.Result(d) = @ptrCast(plan_mod.partial(
            desc,
            sequence,
            place.head,
            @intCast(row),
        ));
        var result: block_mod.Result(d) = undefined;
        result.clear();
        for (partials[0..sequence.chunks()]) |*next| {
            result.fold(&next.acc, next.max, next.sum, &scale);
        }
        result.store(outRow(desc, sequence, place.head, @intCast(row)));
    }
}

/// The prefix or the main range of one (sequence, KV head).
const Source = struct {
    pages: source_mod.Pages,
    indices: ?[*]const i32,
    q: [*]const u16,
    is_prefix: bool,

    fn init(desc: *const Desc, place: *const plan_mod.Place, is_prefix: bool) Source {
        const tables = kernel_mod.pointer(i32, desc.block_table);
        var source: Source = .{
            .pages = .{
                .cache = desc.cache,
                .table = tables + @as(usize, place.s) * desc.block_table.shape[1],
                .layer = desc.layer,
                .head = place.head,
            },
            .indices = null,
            .q = kernel_mod.pointer(u16, desc.q),
            .is_prefix = is_prefix,
        };
        if (!is_prefix) return source;
        if (desc.window > 0) {
            if (kernel_mod.optional(u16, desc.q_sink)) |q_sink| source.q = q_sink;
        } else if (desc.prefix_cache.data != 0) {
            const prefix_tables = kernel_mod.pointer(i32, desc.prefix_table);
            source.pages.cache = desc.prefix_cache;
            source.pages.table = prefix_tables + @as(usize, place.s) * desc.prefix_table.shape[1];
            source.pages.layer = desc.prefix_layer;
        } else {
            const lists = kernel_mod.pointer(i32, desc.indices);
            const list = @as(usize, place.s) * desc.cache.kv_heads + place.head;
            source.indices = lists + list * desc.indices.shape[2];
        }
        return source;
    }

    /// Attends the block to chunk `c` of the sequence; `end` is where the item's run of chunks
    /// ends.
    fn attend(
        self: *const Source,
        comptime d: usize,
        block: *block_mod.Block(d),
        sequence: *const plan_mod.Sequence,
        c: u32,
        end: u32,
        follow: ?source_mod.Pair,
    ) void {
        if (self.is_prefix) {
            const limit = @min(sequence.prefix_tokens, @min(end, sequence.prefix_chunks) * chunk);
            const last = @min((c + 1) * chunk, limit);
            block.attend(&self.pages, self.indices, c * chunk, last, limit, follow);
        } else {
            const shift = sequence.first_chunk -% sequence.prefix_chunks;
            const limit = @min(sequence.length, (end +% shift) * chunk);
            const begin = (c +% shift) * chunk;
            block.attend(&self.pages, null, begin, begin + chunk, limit, follow);
        }
    }
};

/// Where the main range of an item begins: what to prefetch while its prefix ends.
fn firstMainTile(desc: *const Desc, place: *const plan_mod.Place) ?source_mod.Pair {
    const start = plan_mod.mainStart(desc, place.s, place.sequence.position);
    if (start >= place.sequence.length) return null;
    const main: Source = .init(desc, place, false);
    return main.pages.tile(start);
}

/// Loads the block's queries and token ranges for a source. Row index = new row x group + head
/// within the group.
fn setRows(
    comptime d: usize,
    block: *block_mod.Block(d),
    desc: *const Desc,
    place: *const plan_mod.Place,
    source: *const Source,
) void {
    const group = plan_mod.group(desc);
    var q: [block_rows][*]const u16 = undefined;
    for (0..block.rows) |r| {
        const row: u32 = @intCast(place.block * block_rows + r);
        const position = place.sequence.position + row / group;
        q[r] = source.q + rowOffset(desc, place.sequence, place.head, row);
        if (source.is_prefix) {
            block.low[r] = 0;
            block.high[r] = plan_mod.prefixEnd(desc, place.s, position);
        } else {
            block.low[r] = plan_mod.mainStart(desc, place.s, position);
            block.high[r] = position + 1;
        }
    }
    block.loadQueries(q[0..block.rows]);
    block.setRanges();
}

fn rowOffset(desc: *const Desc, sequence: *const plan_mod.Sequence, head: u32, row: u32) usize {
    const group = plan_mod.group(desc);
    const new_row = @as(usize, sequence.first_row) + row / group;
    return (new_row * desc.q.shape[1] + head * group + row % group) * desc.cache.head_dim;
}

fn outRow(desc: *const Desc, sequence: *const plan_mod.Sequence, head: u32, row: u32) [*]u16 {
    return kernel_mod.pointer(u16, desc.out) + rowOffset(desc, sequence, head, row);
}
