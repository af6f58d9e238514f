//! How attention of few rows is cut into work: the arithmetic of src/attention_decode_plan.cuh, of
//! which the host needs the bounds.
//!
//! A job is one KV head of one sequence and one block of its query rows. Its tokens are those of a
//! prefix, then those of the main range, each in tiles of 64. Tiles make chunks, chunks are folded
//! in order into groups and groups into the result: where these begin depends on a tile's place in
//! its source alone. All jobs' tiles stand in one line that is cut evenly; a block owns the chunks
//! whose first tile lies in its part.
const std = @import("std");

pub const tile_tokens = 64;
pub const chunk_tiles = 8;
pub const group_chunks = 8;
/// A job of up to so many chunks may be folded at once.
pub const flat_chunks = 8;

/// All tiles of a call, shared out over its blocks.
pub const Cut = struct {
    tiles: u32,
    blocks: u32,

    pub fn begin(cut: Cut, block: u32) u32 {
        return @intCast(@as(u64, cut.tiles) * block / cut.blocks);
    }

    /// The block in whose part a tile lies.
    pub fn owner(cut: Cut, tile: u32) u32 {
        return @intCast(((@as(u64, tile) + 1) * cut.blocks - 1) / cut.tiles);
    }
};

/// Chunks are numbered through the prefix, then through the main range.
pub const Job = struct {
    /// Tiles of the jobs before it.
    base: u32,
    prefix_tiles: u32,
    /// The first tile that is read of the main cache.
    main_first: u32,
    main_tiles: u32,

    pub fn tiles(job: Job) u32 {
        return job.prefix_tiles + job.main_tiles;
    }

    pub fn prefixChunks(job: Job) u32 {
        return ceilDiv(job.prefix_tiles, chunk_tiles);
    }

    pub fn chunks(job: Job) u32 {
        const end = ceilDiv(job.main_first + job.main_tiles, chunk_tiles);
        const main = if (job.main_tiles == 0) 0 else end - job.mainChunk();
        return job.prefixChunks() + main;
    }

    /// A chunk's first tile, counted from the job's first; `chunks()` gives `tiles()`.
    pub fn chunkTile(job: Job, chunk: u32) u32 {
        const before = job.prefixChunks();
        if (chunk < before) return chunk * chunk_tiles;
        const at = (chunk - before + job.mainChunk()) * chunk_tiles;
        return job.prefix_tiles + @min(at -| job.main_first, job.main_tiles);
    }

    /// The first chunk that begins at or after a tile of the whole call.
    pub fn chunkFrom(job: Job, tile: u32) u32 {
        if (tile <= job.base) return 0;
        const offset = tile - job.base;
        const before = job.prefixChunks();
        if (before > 0 and offset <= (before - 1) * chunk_tiles) return ceilDiv(offset, chunk_tiles);
        const into = offset -| job.prefix_tiles;
        if (into == 0) return before;
        const chunk = before + ceilDiv(job.main_first + into, chunk_tiles) - job.mainChunk();
        return @min(chunk, job.chunks());
    }

    /// The chunks of a chunk's group: [groupBegin, groupEnd).
    pub fn groupBegin(job: Job, chunk: u32) u32 {
        const before = job.prefixChunks();
        if (chunk < before) return chunk / group_chunks * group_chunks;
        const first = (chunk - before + job.mainChunk()) / group_chunks * group_chunks;
        return before + (first -| job.mainChunk());
    }

    pub fn groupEnd(job: Job, chunk: u32) u32 {
        const before = job.prefixChunks();
        if (chunk < before) return @min((chunk / group_chunks + 1) * group_chunks, before);
        const end = ((chunk - before + job.mainChunk()) / group_chunks + 1) * group_chunks;
        return @min(before + end - job.mainChunk(), job.chunks());
    }

    /// The number of a chunk's group.
    pub fn group(job: Job, chunk: u32) u32 {
        const before = job.prefixChunks();
        if (chunk < before) return chunk / group_chunks;
        const at = (chunk - before + job.mainChunk()) / group_chunks;
        return ceilDiv(before, group_chunks) + at - job.mainChunk() / group_chunks;
    }

    pub fn groups(job: Job) u32 {
        return job.group(job.chunks() - 1) + 1;
    }

    /// The first chunk of a group.
    pub fn groupChunk(job: Job, number: u32) u32 {
        const before = job.prefixChunks();
        const groups_before = ceilDiv(before, group_chunks);
        if (number < groups_before) return number * group_chunks;
        const at = number - groups_before + job.mainChunk() / group_chunks;
        return before + (at * group_chunks -| job.mainChunk());
    }

    /// Whether this job is folded at once where it is cut.
    pub fn flat(job: Job, cut: Cut) bool {
        return job.chunks() <= flat_chunks and cut.tiles <= 2 * chunk_tiles * cut.blocks;
    }

    /// The slot of a flat job's chunk in the block whose chunks of the job begin at `first`.
    pub fn flatSlot(first: u32, chunk: u32) u32 {
        return if (first > 0) Slot.chunks + chunk - first else Slot.groups - 1 - chunk;
    }

    pub fn owner(job: Job, cut: Cut, chunk: u32) u32 {
        return cut.owner(job.base + job.chunkTile(chunk));
    }

    /// Where the chunks of a block begin in this job; those of the next block are their end.
    pub fn begin(job: Job, cut: Cut, block: u32) u32 {
        return job.chunkFrom(cut.begin(block));
    }

    /// The slot of the group that begins at a chunk, in the block that has chunks [first, end).
    pub fn groupSlot(job: Job, first: u32, end: u32, chunk: u32) u32 {
        if (job.groupEnd(chunk) > end) return Slot.group;
        const cut_off: u32 = @intFromBool(job.groupBegin(first) != first);
        return Slot.groups + job.group(chunk) - job.group(first) - cut_off;
    }

    /// Number in the main cache of the job's first main chunk.
    fn mainChunk(job: Job) u32 {
        return job.main_first / chunk_tiles;
    }
};

/// Where a block leaves partials for other blocks.
pub const Slot = struct {
    /// All groups from a job's first to the last that the block completed.
    pub const total = 0;
    /// The group that begins here and ends in another block.
    pub const group = 1;
    /// Chunks of a group that began in another block.
    pub const chunks = 2;
    /// Whole groups of a job that began in another block.
    pub const groups = chunks + group_chunks - 1;
};

/// What a call has at most, whatever the lengths are.
pub const Most = struct {
    jobs: u64,
    /// Of one job.
    main_tiles: u64,
    prefix_tiles: u64,
};

/// Slots of one block. Of whole groups it has as many as a job of its main range, where both ends
/// may be short, and its prefix; or as its part of the tiles, to which the last chunk may add, with
/// up to three short ones: the prefix's last, the main range's first and last.
pub fn slots(most: Most, blocks: u32) u32 {
    const group_tiles = chunk_tiles * group_chunks;
    const in_job = most.main_tiles / group_tiles + 2 + ceilDiv(most.prefix_tiles, group_tiles);
    const tiles = most.jobs * (most.main_tiles + most.prefix_tiles);
    const part = ceilDiv(tiles, blocks) + chunk_tiles;
    return @intCast(Slot.groups + @min(in_job, part / group_tiles + 3));
}

/// Blocks that a call starts, where `fit` have room on the GPU. Up to a sixteenth stays away where
/// jobs of equal length are then cut in fewer places, for every cut is a merge.
pub fn grid(jobs: u64, fit: u32) u32 {
    const least = leastGrid(fit);
    if (jobs <= fit) {
        const few: u32 = @intCast(jobs);
        var halves = few;
        while (halves * 2 <= fit) halves *= 2;
        if (halves >= least) return halves;
        const parts = fit / few * few;
        return if (parts >= least) parts else fit;
    }
    var blocks = fit;
    while (blocks >= least) : (blocks -= 1) {
        if (jobs % blocks == 0) return blocks;
    }
    return fit;
}

pub fn leastGrid(fit: u32) u32 {
    return fit - fit / 16;
}

/// Blocks of rows that the sequences can have together, whatever the rows of each.
pub fn rowBlocks(rows: u64, group: u64, sequences: u64, block_rows: u64) u64 {
    return rows * group / block_rows + sequences;
}

fn ceilDiv(a: anytype, b: @TypeOf(a)) @TypeOf(a) {
    return (a + b - 1) / b;
}

const testing = std.testing;

/// What the kernel's blocks do with one batch, one after the other.
const Trace = struct {
    cut: Cut,
    jobs: []const Job,
    slots: u32,
    held: []?Held,
    group_tickets: []u32,
    job_tickets: []u32,
    /// How often each job's result was written.
    written: []u32,

    /// Chunks [from, to) of a job.
    const Held = struct { job: u32, from: u32, to: u32 };

    fn init(gpa: std.mem.Allocator, jobs: []const Job, cut: Cut, most: Most) !Trace {
        const slot_count = slots(most, cut.blocks);
        const trace: Trace = .{
            .cut = cut,
            .jobs = jobs,
            .slots = slot_count,
            .held = try gpa.alloc(?Held, cut.blocks * slot_count),
            .group_tickets = try gpa.alloc(u32, cut.blocks),
            .job_tickets = try gpa.alloc(u32, cut.blocks),
            .written = try gpa.alloc(u32, jobs.len),
        };
        @memset(trace.held, null);
        for ([_][]u32{ trace.group_tickets, trace.job_tickets, trace.written }) |each| {
            @memset(each, 0);
        }
        return trace;
    }

    fn runBlock(trace: *Trace, block: u32) !void {
        for (trace.jobs, 0..) |job, j| {
            const from = job.begin(trace.cut, block);
            const to = job.begin(trace.cut, block + 1);
            if (from < to) try trace.run(@intCast(j), block, from, to);
        }
    }

    fn run(trace: *Trace, j: u32, block: u32, from: u32, to: u32) !void {
        const job = trace.jobs[j];
        if (to - from < job.chunks() and job.flat(trace.cut)) return trace.runFlat(j, block, from, to);
        var completed: u32 = 0;
        var chunk = from;
        while (chunk < to) {
            const first, const end = .{ job.groupBegin(chunk), job.groupEnd(chunk) };
            const until = @min(end, to);
            if (first < from) {
                for (chunk..until) |at| {
                    const c: u32 = @intCast(at);
                    const held: Held = .{ .job = j, .from = c, .to = c + 1 };
                    try testing.expect(c - from < group_chunks - 1);
                    try trace.put(block, Slot.chunks + c - from, held);
                }
                completed += try trace.closeCutGroup(j, first, until - from);
            } else if (end <= to) {
                completed += 1;
                if (try trace.closeGroup(j, block, from, to, first)) return;
            } else {
                try trace.put(block, Slot.group, .{ .job = j, .from = first, .to = to });
                completed += try trace.closeCutGroup(j, first, to - first);
            }
            chunk = until;
        }
        if (completed > 0) try trace.closeJob(j, completed);
    }

    fn runFlat(trace: *Trace, j: u32, block: u32, from: u32, to: u32) !void {
        const job = trace.jobs[j];
        for (from..to) |at| {
            const c: u32 = @intCast(at);
            try trace.put(block, Job.flatSlot(from, c), .{ .job = j, .from = c, .to = c + 1 });
        }
        const owner = job.owner(trace.cut, 0);
        if (!try arriveLast(&trace.job_tickets[owner], to - from, job.chunks())) return;
        for (0..job.chunks()) |at| {
            const c: u32 = @intCast(at);
            const holder = job.owner(trace.cut, c);
            const slot = Job.flatSlot(job.begin(trace.cut, holder), c);
            const held: Held = .{ .job = j, .from = c, .to = c + 1 };
            try testing.expectEqual(held, trace.slotOf(holder, slot).*.?);
        }
        trace.written[j] += 1;
    }

    fn closeGroup(trace: *Trace, j: u32, block: u32, from: u32, to: u32, first: u32) !bool {
        const job = trace.jobs[j];
        const end = job.groupEnd(first);
        if (from > 0) {
            const held: Held = .{ .job = j, .from = first, .to = end };
            try trace.put(block, job.groupSlot(from, to, first), held);
            return false;
        }
        const total = trace.slotOf(block, Slot.total);
        if (first > 0) try testing.expectEqual(Held{ .job = j, .from = 0, .to = first }, total.*.?);
        total.* = null;
        if (end == job.chunks()) {
            trace.written[j] += 1;
            return true;
        }
        try trace.put(block, Slot.total, .{ .job = j, .from = 0, .to = end });
        return false;
    }

    fn closeCutGroup(trace: *Trace, j: u32, first: u32, chunks: u32) !u32 {
        const job = trace.jobs[j];
        const owner, const end = .{ job.owner(trace.cut, first), job.groupEnd(first) };
        if (!try arriveLast(&trace.group_tickets[owner], chunks, end - first)) return 0;
        const there = job.begin(trace.cut, owner + 1);
        const begun: Held = .{ .job = j, .from = first, .to = there };
        try testing.expectEqual(begun, trace.slotOf(owner, Slot.group).*.?);
        for (there..end) |at| {
            const c: u32 = @intCast(at);
            const block = job.owner(trace.cut, c);
            const slot = Slot.chunks + c - job.begin(trace.cut, block);
            const held: Held = .{ .job = j, .from = c, .to = c + 1 };
            try testing.expectEqual(held, trace.slotOf(block, slot).*.?);
        }
        trace.slotOf(owner, Slot.group).* = .{ .job = j, .from = first, .to = end };
        return 1;
    }

    fn closeJob(trace: *Trace, j: u32, completed: u32) !void {
        const job = trace.jobs[j];
        const owner, const groups = .{ job.owner(trace.cut, 0), job.groups() };
        if (!try arriveLast(&trace.job_tickets[owner], completed, groups)) return;
        const there = job.begin(trace.cut, owner + 1);
        const known = if (there == job.chunks()) groups else job.group(there);
        if (known > 0) {
            const to = if (known == groups) job.chunks() else job.groupChunk(known);
            const total: Held = .{ .job = j, .from = 0, .to = to };
            try testing.expectEqual(total, trace.slotOf(owner, Slot.total).*.?);
        }
        for (known..groups) |number| {
            const c = job.groupChunk(@intCast(number));
            const block = job.owner(trace.cut, c);
            const from = job.begin(trace.cut, block);
            const slot = job.groupSlot(from, job.begin(trace.cut, block + 1), c);
            const held: Held = .{ .job = j, .from = c, .to = job.groupEnd(c) };
            try testing.expectEqual(held, trace.slotOf(block, slot).*.?);
        }
        trace.written[j] += 1;
    }

    fn arriveLast(ticket: *u32, count: u32, whole: u32) !bool {
        ticket.* += count;
        try testing.expect(ticket.* <= whole);
        if (ticket.* < whole) return false;
        ticket.* = 0;
        return true;
    }

    fn put(trace: *Trace, block: u32, slot: u32, held: Held) !void {
        try testing.expect(slot < trace.slots);
        try testing.expectEqual(null, trace.slotOf(block, slot).*);
        trace.slotOf(block, slot).* = held;
    }

    fn slotOf(trace: *Trace, block: u32, slot: u32) *?Held {
        return &trace.held[block * trace.slots + slot];
    }
};

/// Jobs of very different sizes, and what they are at most.
fn randomJobs(random: std.Random, jobs: []Job) Most {
    const longest = ([_]u32{ 4, 40, 400 })[random.uintLessThan(usize, 3)];
    const longest_prefix = ([_]u32{ 0, 12, 150 })[random.uintLessThan(usize, 3)];
    var base: u32 = 0;
    var most: Most = .{ .jobs = jobs.len, .main_tiles = 0, .prefix_tiles = 0 };
    for (jobs) |*job| {
        const prefix = if (random.boolean()) 0 else random.uintAtMost(u32, longest_prefix);
        const none = prefix > 0 and random.uintLessThan(u32, 10) == 0;
        job.* = .{
            .base = base,
            .prefix_tiles = prefix,
            .main_first = if (random.boolean()) 0 else random.uintLessThan(u32, 300),
            .main_tiles = if (none) 0 else random.intRangeAtMost(u32, 1, longest),
        };
        base += job.tiles();
        most.main_tiles = @max(most.main_tiles, job.main_tiles);
        most.prefix_tiles = @max(most.prefix_tiles, prefix);
    }
    return most;
}

fn randomCut(random: std.Random, jobs: []const Job) Cut {
    const last = jobs[jobs.len - 1];
    const most: u32 = if (random.boolean()) 8 else 300;
    const blocks = random.intRangeAtMost(u32, 1, most);
    return .{ .tiles = last.base + last.tiles(), .blocks = blocks };
}

test "chunks and groups are cut at multiples of each source, and each chunk has one block" {
    var prng: std.Random.DefaultPrng = .init(7);
    const random = prng.random();
    var jobs: [12]Job = undefined;
    for (0..300) |_| {
        const batch = jobs[0..random.intRangeAtMost(usize, 1, jobs.len)];
        _ = randomJobs(random, batch);
        const cut = randomCut(random, batch);
        for (batch) |job| {
            try expectTree(job);
            var reached: u32 = 0;
            for (0..cut.blocks) |b| {
                const block: u32 = @intCast(b);
                const from, const to = .{ job.begin(cut, block), job.begin(cut, block + 1) };
                try testing.expectEqual(reached, from);
                for (from..to) |c| try testing.expectEqual(block, job.owner(cut, @intCast(c)));
                reached = to;
            }
            try testing.expectEqual(job.chunks(), reached);
        }
    }
}

fn expectTree(job: Job) !void {
    const count, const before = .{ job.chunks(), job.prefixChunks() };
    try testing.expectEqual(0, job.chunkTile(0));
    try testing.expectEqual(job.tiles(), job.chunkTile(count));
    try testing.expectEqual(count, job.chunkFrom(job.base + job.tiles() + 5));
    var number: u32 = 0;
    for (0..count) |i| {
        const chunk: u32 = @intCast(i);
        const begin, const end = .{ job.chunkTile(chunk), job.chunkTile(chunk + 1) };
        try testing.expect(begin < end and end - begin <= chunk_tiles);
        try testing.expect(if (chunk < before) end <= job.prefix_tiles else begin >= job.prefix_tiles);
        const place = if (chunk < before) end else job.main_first + end - job.prefix_tiles;
        const last = chunk + 1 == before or chunk + 1 == count;
        try testing.expect(last or place % chunk_tiles == 0);
        for (begin..end) |tile| {
            const from = if (tile == begin) chunk else chunk + 1;
            try testing.expectEqual(from, job.chunkFrom(job.base + @as(u32, @intCast(tile))));
        }
        const first, const after = .{ job.groupBegin(chunk), job.groupEnd(chunk) };
        try testing.expect(first <= chunk and chunk < after and after - first <= group_chunks);
        try testing.expectEqual(first < before, after <= before);
        if (chunk == first and chunk > 0) number += 1;
        try testing.expectEqual(number, job.group(chunk));
        try testing.expectEqual(first, job.groupChunk(number));
        try testing.expect(after == count or job.groupBegin(after) == after);
    }
    try testing.expectEqual(number + 1, job.groups());
}

test "in any order of blocks every partial is where it is looked for, and tickets end as zeros" {
    var prng: std.Random.DefaultPrng = .init(11);
    const random = prng.random();
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var jobs: [12]Job = undefined;
    for (0..1500) |_| {
        defer _ = arena.reset(.retain_capacity);
        const batch = jobs[0..random.intRangeAtMost(usize, 1, jobs.len)];
        const most = randomJobs(random, batch);
        const cut = randomCut(random, batch);
        const order = try arena.allocator().alloc(u32, cut.blocks);
        for (order, 0..) |*block, i| block.* = @intCast(i);
        random.shuffle(u32, order);
        var trace: Trace = try .init(arena.allocator(), batch, cut, most);
        for (order) |block| try trace.runBlock(block);
        for (trace.written) |count| try testing.expectEqual(1, count);
        for (trace.group_tickets) |ticket| try testing.expectEqual(0, ticket);
        for (trace.job_tickets) |ticket| try testing.expectEqual(0, ticket);
    }
}

test "the cut is even and owner finds the block of each tile" {
    const cases = [_][2]u32{ .{ 1, 1 }, .{ 3, 7 }, .{ 264, 264 }, .{ 8224, 264 }, .{ 265, 264 } };
    for (cases) |case| {
        const tiles, const blocks = case;
        const cut: Cut = .{ .tiles = tiles, .blocks = blocks };
        try testing.expectEqual(tiles, cut.begin(blocks));
        for (0..tiles) |i| {
            const tile: u32 = @intCast(i);
            const block = cut.owner(tile);
            try testing.expect(cut.begin(block) <= tile and tile < cut.begin(block + 1));
        }
        for (0..blocks) |i| {
            const block: u32 = @intCast(i);
            const size = cut.begin(block + 1) - cut.begin(block);
            try testing.expect(size == tiles / blocks or size == tiles / blocks + 1);
        }
    }
    const large: Cut = .{ .tiles = 1 << 31, .blocks = 264 };
    try testing.expectEqual(large.tiles, large.begin(264));
    try testing.expectEqual(263, large.owner(large.tiles - 1));
}

test "the grid fills the GPU, and cuts no job that it need not cut" {
    for ([_][3]u32{
        .{ 256, 264, 256 },
        .{ 128, 264, 256 },
        .{ 8, 264, 256 },
        .{ 8, 132, 128 },
        .{ 1, 132, 128 },
        .{ 24, 264, 264 },
        .{ 88, 264, 264 },
        .{ 512, 264, 256 },
        .{ 272, 264, 264 },
        .{ 263, 264, 263 },
        .{ 1, 1, 1 },
    }) |case| try testing.expectEqual(case[2], grid(case[0], case[1]));
    for (1..2000) |jobs| {
        for ([_]u32{ 1, 7, 78, 132, 264 }) |fit| {
            const blocks = grid(jobs, fit);
            try testing.expect(leastGrid(fit) <= blocks and blocks <= fit);
        }
    }
}

test "row blocks of ragged sequences stay within the bound" {
    var prng: std.Random.DefaultPrng = .init(3);
    const random = prng.random();
    for (0..200) |_| {
        const group = random.intRangeAtMost(u32, 1, 8);
        const block_rows = @as(u32, 16) << random.intRangeAtMost(u5, 0, 2);
        const sequences = random.intRangeAtMost(u32, 1, 40);
        var rows: u32 = 0;
        var blocks: u32 = 0;
        for (0..sequences) |_| {
            const more = random.uintAtMost(u32, 20);
            rows += more;
            blocks += ceilDiv(more * group, block_rows);
        }
        try testing.expect(blocks <= rowBlocks(rows, group, sequences, block_rows));
    }
}
