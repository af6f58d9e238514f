//! How attention of few rows is cut into work: the arithmetic of src/attention_decode_work.cuh, of
//! which the host needs the bounds.
//!
//! An item is a sequence, a KV head and a block of its rows. Its tokens come in up to two parts, a
//! prefix and the main part, cut at multiples of a chunk of the part's own tokens; chunks are
//! folded into groups and groups into the total, left to right, wherever they were computed.
const std = @import("std");

pub const chunk_tokens = 512;
pub const group_chunks = 8;

/// An item's chunks in order: those of its prefix, then those of its main part.
pub const Chunks = struct {
    prefix: u32,
    /// In chunks from the main part's token 0: where it begins.
    main_first: u32,
    count: u32,

    pub fn of(prefix_tokens: u32, main_start: u32, length: u32) Chunks {
        const prefix = ceilDiv(prefix_tokens, chunk_tokens);
        const main_first = main_start / chunk_tokens;
        const count = prefix + ceilDiv(length, chunk_tokens) - main_first;
        return .{ .prefix = prefix, .main_first = main_first, .count = count };
    }

    /// Where the group of a chunk ends.
    pub fn groupEnd(chunks: Chunks, chunk: u32) u32 {
        if (chunk < chunks.prefix) return @min(next(chunk), chunks.prefix);
        const at = chunks.main_first + chunk - chunks.prefix;
        return @min(chunks.prefix + next(at) - chunks.main_first, chunks.count);
    }

    pub fn groupBegin(chunks: Chunks, chunk: u32) u32 {
        if (chunk < chunks.prefix) return next(chunk) - group_chunks;
        const at = chunks.main_first + chunk - chunks.prefix;
        const begin = @max(next(at) - group_chunks, chunks.main_first);
        return chunks.prefix + begin - chunks.main_first;
    }

    fn next(chunk: u32) u32 {
        return (chunk / group_chunks + 1) * group_chunks;
    }
};

/// Units in runs of equal length, one to a block; the first `more` are one longer.
pub const Cut = struct {
    each: u32,
    more: u32,

    pub fn of(units: u32, blocks: u32) Cut {
        return .{ .each = units / blocks, .more = units % blocks };
    }

    pub fn start(cut: Cut, block: u32) u32 {
        return block * cut.each + @min(block, cut.more);
    }

    pub fn owner(cut: Cut, unit: u32) u32 {
        const longer = cut.more * (cut.each + 1);
        if (unit < longer) return unit / (cut.each + 1);
        return cut.more + (unit - longer) / cut.each;
    }
};

/// Whether blocks take whole items: where that costs at most an eighth above the even share, or a
/// chunk.
pub fn whole(units: u64, items: u64, longest: u64, blocks: u64) bool {
    const cost = ceilDiv(items, blocks) * longest * blocks;
    return cost <= units + units / 8 + blocks;
}

/// Blocks of rows that the sequences can have together, whatever the rows of each.
pub fn rowBlocks(rows: u64, group: u64, sequences: u64, block_rows: u64) u64 {
    return rows * group / block_rows + sequences;
}

/// Where a block leaves what it read of an item that other blocks read too: of an item's beginning its
/// total and its unfinished group; of the rest, one after the other, the chunks of a group begun
/// elsewhere and then each group.
pub const Slot = struct {
    pub const total = 0;
    pub const open = 1;
    pub const rest = 2;
};

/// Partial results that one block writes at most: a group's chunks but one, and as many groups as its
/// units hold, whole or not.
pub fn slots(units: u64, chunks: u64, blocks: u64) u32 {
    const run = @min(ceilDiv(units, blocks) + 1, chunks);
    return @intCast(Slot.rest + group_chunks - 1 + ceilDiv(run, group_chunks) + 2);
}

fn ceilDiv(a: anytype, b: @TypeOf(a)) @TypeOf(a) {
    return (a + b - 1) / b;
}

const testing = std.testing;

/// What blocks do with one batch: how often each chunk is read, which slots are written.
const Trace = struct {
    cut: Cut,
    whole: bool,
    slots: u32,
    seen: []u8,
    used: []u8,

    /// The item's units are [first, first + size).
    fn item(trace: *Trace, chunks: Chunks, first: u32, base: u32) !void {
        const size: u32 = if (trace.whole) 1 else chunks.count;
        const last_block = trace.cut.owner(first + size - 1);
        var block = trace.cut.owner(first);
        while (block <= last_block) : (block += 1) {
            const begin = @max(trace.cut.start(block), first) - first;
            const end = @min(trace.cut.start(block + 1), first + size) - first;
            try testing.expect(begin < end);
            const from = if (trace.whole) 0 else begin;
            const to = if (trace.whole) chunks.count else end;
            for (trace.seen[base + from .. base + to]) |*count| count.* += 1;
            try trace.partials(block, chunks, from, to);
        }
    }

    fn partials(trace: *Trace, block: u32, chunks: Chunks, from: u32, to: u32) !void {
        if (from == 0 and to == chunks.count) return;
        if (from == 0) try trace.write(block, Slot.total);
        var slot: u32 = Slot.rest;
        var chunk = from;
        while (chunk < to) {
            const begin, const end = .{ chunks.groupBegin(chunk), chunks.groupEnd(chunk) };
            try testing.expect(begin <= chunk and chunk < end and end - begin <= group_chunks);
            const until = @min(end, to);
            if (begin < from) {
                for (chunk..until) |_| {
                    try trace.write(block, slot);
                    slot += 1;
                }
            } else if (from > 0) {
                try trace.write(block, slot);
                slot += 1;
            } else if (end > to) {
                try trace.write(block, Slot.open);
            }
            chunk = until;
        }
    }

    fn write(trace: *Trace, block: u32, slot: u32) !void {
        try testing.expect(slot < trace.slots);
        const used = &trace.used[block * trace.slots + slot];
        try testing.expectEqual(@as(u8, 0), used.*);
        used.* = 1;
    }
};

test "every chunk of a ragged batch is read once, and no slot is written twice" {
    var prng: std.Random.DefaultPrng = .init(7);
    const random = prng.random();
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    for (0..400) |_| {
        defer _ = arena.reset(.retain_capacity);
        const blocks = random.intRangeAtMost(u32, 1, 300);
        const items = random.intRangeAtMost(u32, 1, 64);
        const longest_tokens = @as(u32, 1) << random.intRangeAtMost(u5, 0, 17);
        const of_items = try arena.allocator().alloc(Chunks, items);
        var units: u32 = 0;
        var longest: u32 = 0;
        for (of_items) |*chunks| {
            const length = random.intRangeAtMost(u32, 1, longest_tokens);
            const start = if (random.boolean()) 0 else random.uintLessThan(u32, length);
            const prefix = if (random.boolean()) 0 else random.uintAtMost(u32, 5000);
            chunks.* = .of(prefix, start, length);
            units += chunks.count;
            longest = @max(longest, chunks.count);
        }
        const in_whole = whole(units, items, longest, blocks);
        const slot_count = slots(units, longest, blocks);
        var trace: Trace = .{
            .cut = .of(if (in_whole) items else units, blocks),
            .whole = in_whole,
            .slots = slot_count,
            .seen = try arena.allocator().alloc(u8, units),
            .used = try arena.allocator().alloc(u8, blocks * slot_count),
        };
        @memset(trace.seen, 0);
        @memset(trace.used, 0);
        var base: u32 = 0;
        for (of_items, 0..) |chunks, i| {
            try trace.item(chunks, if (in_whole) @intCast(i) else base, base);
            base += chunks.count;
        }
        for (trace.seen) |count| try testing.expectEqual(@as(u8, 1), count);
    }
}

test "the cut is even and owner finds the block of each unit" {
    for ([_][2]u32{ .{ 1, 1 }, .{ 3, 7 }, .{ 264, 264 }, .{ 8224, 264 }, .{ 265, 264 } }) |case| {
        const units, const blocks = case;
        const cut: Cut = .of(units, blocks);
        try testing.expectEqual(units, cut.start(blocks));
        for (0..units) |i| {
            const unit: u32 = @intCast(i);
            const block = cut.owner(unit);
            try testing.expect(cut.start(block) <= unit and unit < cut.start(block + 1));
        }
    }
}

test "equal items about as many as blocks stay whole" {
    try testing.expect(whole(256 * 3, 256, 3, 264));
    try testing.expect(whole(256 * 33, 256, 33, 264));
    try testing.expect(!whole(8 * 3, 8, 3, 264));
    try testing.expect(!whole(128 * 65, 128, 65, 264));
    try testing.expect(!whole(272 * 33, 272, 33, 264));
}

test "row blocks of ragged sequences stay within the bound" {
    var prng: std.Random.DefaultPrng = .init(3);
    const random = prng.random();
    for (0..200) |_| {
        const group = random.intRangeAtMost(u32, 1, 8);
        const block_rows = @as(u32, 16) << random.intRangeAtMost(u5, 0, 2);
        var first: u32 = 0;
        var next_id: u32 = 0;
        for (0..random.intRangeAtMost(u32, 1, 40)) |s| {
            const rows = random.uintAtMost(u32, 20);
            const id: u32 = @intCast(rowBlocks(first, group, s, block_rows));
            // The kernel's tickets: no two blocks of rows share one.
            try testing.expect(next_id <= id);
            next_id = id + ceilDiv(rows * group, block_rows);
            first += rows;
            try testing.expect(next_id <= rowBlocks(first, group, s + 1, block_rows));
        }
    }
}
