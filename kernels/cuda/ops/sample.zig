const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const Context = @import("../context.zig").Context;

/// SampleParams in src/sampling.cu.
const Params = extern struct {
    logits: u64,
    params: u64,
    positions: u64,
    out: u64,
    probs: u64,
    v: u32,
    r: u32,
    out_stride: u32,
    probs_stride: u32,
    stream: u32,
    share: u32,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 64);
}

/// How a row of the vocabulary is shared out to a team of blocks (src/distribution.cuh).
pub const Team = struct {
    blocks: u32,
    /// Entries of a block: whole runs of the noise.
    share: u32,
    /// Where its share lies; 0 where a block reads global memory.
    shared_bytes: u32,

    pub const threads = 256;
    const run_entries = 64;
    const hopper_blocks = 8;

    pub fn of(hopper: bool, v: u32) Team {
        const blocks: u32 = if (hopper) hopper_blocks else 1;
        const runs = (v + blocks * run_entries - 1) / (blocks * run_entries);
        const share = runs * run_entries;
        return .{
            .blocks = blocks,
            .share = share,
            .shared_bytes = if (hopper) share * @sizeOf(f32) else 0,
        };
    }
};

/// A team a row.
pub fn sample(ctx: *Context, desc: *const types.SampleDesc) errors.Error!void {
    const rows, const v = desc.logits.shape[0..2].*;
    const team: Team = .of(ctx.hopper(), v);
    const params: Params = .{
        .logits = desc.logits.data,
        .params = desc.params.data,
        .positions = desc.positions.data,
        .out = desc.out.data,
        .probs = desc.probs.data,
        .v = v,
        .r = rows / desc.params.shape[0],
        .out_stride = desc.out_stride,
        .probs_stride = desc.probs_stride,
        .stream = @intFromEnum(desc.stream),
        .share = team.share,
    };
    return ctx.launch(
        .{ .module = .sampling, .name = "md_sample_rows" },
        .{
            .grid = .{ rows * team.blocks, 1, 1 },
            .block = Team.threads,
            .shared_bytes = team.shared_bytes,
        },
        &params,
    );
}

test "a team's shares cover the vocabulary in whole runs" {
    for ([_]bool{ false, true }) |hopper| {
        for ([_]u32{ 1, 63, 64, 65, 512, 513, 32_000, 50_257, 128_256, 1 << 18 }) |v| {
            const team: Team = .of(hopper, v);
            try std.testing.expectEqual(0, team.share % 64);
            try std.testing.expect(team.blocks * team.share >= v);
            try std.testing.expect(team.blocks * (team.share - 64) < v);
            try std.testing.expect(team.shared_bytes <= 128 << 10);
        }
    }
}
