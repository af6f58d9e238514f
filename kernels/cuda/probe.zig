//! Measures what this GPU can do, with the clocks that it has at the moment.
const types = @import("../abi/types.zig");
const errors = @import("../core/errors.zig");
const driver = @import("driver.zig");
const context_mod = @import("context.zig");

const Context = context_mod.Context;
const Error = errors.Error;

/// Reads of less would find some of it in the L2.
const least_l2_multiple = 16;
/// The best of so many: what else runs on the machine only ever makes it slower.
const attempts = 8;

/// Makes a pass of arithmetic some milliseconds long.
const rounds = 1 << 15;
const read_block = 512;
const read_blocks_per_sm = 2;
/// As src/probe.cu has them.
const fma_chains = 16;
const fma_block = 256;
const fma_blocks_per_sm = 8;
const dot_block = 128;
const dot_blocks_per_sm = 2;
const dot_flops_per_round = 2 * 64 * 256 * 16;

const FillParams = extern struct { data: u64, chunks: u64 };
const ReadParams = extern struct {
    data: u64,
    sink: u64,
    /// Of 16 bytes.
    chunks: u64,
};
const PeakParams = extern struct { sink: u64, rounds: u32, reserved: u32 = 0 };

/// GB/s or GFLOP/s.
pub fn measure(ctx: *Context, kind: types.ProbeKind, bytes: u64) Error!f64 {
    switch (kind) {
        .read_bandwidth => return readBandwidth(ctx, @max(bytes, least_l2_multiple * ctx.l2_bytes)),
        .dot_peak => {
            const blocks = ctx.sm_count * dot_blocks_per_sm;
            const work = @as(f64, dot_flops_per_round * rounds) * @as(f64, @floatFromInt(blocks));
            return best(ctx, "md_probe_dot", blocks, dot_block, work, &peakParams(ctx));
        },
        .fma_peak => {
            const blocks = ctx.sm_count * fma_blocks_per_sm;
            const work = @as(f64, 2 * fma_chains * fma_block * rounds) *
                @as(f64, @floatFromInt(blocks));
            return best(ctx, "md_probe_fma", blocks, fma_block, work, &peakParams(ctx));
        },
    }
}

fn peakParams(ctx: *const Context) PeakParams {
    return .{ .sink = ctx.scratch, .rounds = rounds };
}

fn readBandwidth(ctx: *Context, bytes: u64) Error!f64 {
    const free = (try ctx.memoryState()).free;
    if (bytes > free) return errors.fail(
        error.OutOfMemory,
        "expected at most the {d} bytes available, got {d}",
        .{ free, bytes },
    );
    var data: u64 = 0;
    try ctx.call(.cuMemAlloc_v2, .{ &data, bytes });
    defer _ = ctx.functions.cuMemFree_v2(data);
    const chunks = bytes / 16;
    const blocks = ctx.sm_count * read_blocks_per_sm;
    try ctx.launch(
        .{ .module = .probe, .name = "md_probe_fill" },
        .{ .grid = .{ blocks, 1, 1 }, .block = read_block },
        &FillParams{ .data = data, .chunks = chunks },
    );
    const params: ReadParams = .{ .data = data, .sink = ctx.scratch, .chunks = chunks };
    return best(ctx, "md_probe_read", blocks, read_block, @floatFromInt(chunks * 16), &params);
}

/// Work a nanosecond, of the fastest pass.
fn best(
    ctx: *Context,
    comptime name: [:0]const u8,
    blocks: u32,
    block: u32,
    work: f64,
    params: anytype,
) Error!f64 {
    var start: driver.Event = undefined;
    try ctx.call(.cuEventCreate, .{ &start, 0 });
    defer _ = ctx.functions.cuEventDestroy_v2(start);
    var end: driver.Event = undefined;
    try ctx.call(.cuEventCreate, .{ &end, 0 });
    defer _ = ctx.functions.cuEventDestroy_v2(end);
    var result: f64 = 0;
    for (0..attempts) |_| {
        try ctx.call(.cuEventRecord, .{ start, ctx.stream });
        try ctx.launch(
            .{ .module = .probe, .name = name },
            .{ .grid = .{ blocks, 1, 1 }, .block = block },
            params,
        );
        try ctx.call(.cuEventRecord, .{ end, ctx.stream });
        try ctx.sync();
        var milliseconds: f32 = 0;
        try ctx.call(.cuEventElapsedTime_v2, .{ &milliseconds, start, end });
        result = @max(result, work / (@as(f64, milliseconds) * 1e6));
    }
    return result;
}
