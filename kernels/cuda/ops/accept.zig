const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const Context = @import("../context.zig").Context;
const Team = @import("sample.zig").Team;

/// AcceptParams in src/sampling.cu.
const Params = extern struct {
    chain: u64,
    target_tokens: u64,
    target_logits: u64,
    draft_probs: u64,
    params: u64,
    active: u64,
    lens: u64,
    count: u64,
    out: u64,
    rows: u64,
    g: u32,
    v: u32,
    share: u32,
    reserved: u32 = 0,
};

/// RowResult in src/sampling.cu.
const row_bytes = 32;

comptime {
    std.debug.assert(@sizeOf(Params) == 96);
}

pub fn accept(ctx: *Context, desc: *const types.AcceptDesc) errors.Error!void {
    const v = desc.target_logits.shape[1];
    const team: Team = .of(ctx.hopper(), v);
    const params: Params = .{
        .chain = desc.chain.data,
        .target_tokens = desc.target_tokens.data,
        .target_logits = desc.target_logits.data,
        .draft_probs = desc.draft_probs.data,
        .params = desc.params.data,
        .active = desc.active.data,
        .lens = desc.lens.data,
        .count = desc.count.data,
        .out = desc.out.data,
        .rows = ctx.scratch,
        .g = desc.chain.shape[1] - 2,
        .v = v,
        .share = team.share,
    };
    const b = desc.chain.shape[0];
    return switch (desc.rule) {
        .match => ctx.launch(
            .{ .module = .sampling, .name = "md_accept_match" },
            .{ .grid = .{ b, 1, 1 }, .block = 32 },
            &params,
        ),
        .rejection => reject(ctx, b, desc.target_logits.shape[0], team, &params),
    };
}

/// All rows' distributions at once, since one after the other would leave most of the GPU idle;
/// then a team a sequence.
fn reject(ctx: *Context, b: u32, rows: u32, team: Team, params: *const Params) errors.Error!void {
    const most = Context.scratch_bytes / row_bytes;
    if (rows > most) return errors.fail(
        error.Unsupported,
        "expected at most {d} rows of target logits, got {d}",
        .{ most, rows },
    );
    try ctx.launch(
        .{ .module = .sampling, .name = "md_accept_rows" },
        .{
            .grid = .{ rows * team.blocks, 1, 1 },
            .block = Team.threads,
            .shared_bytes = team.shared_bytes,
        },
        params,
    );
    return ctx.launch(
        .{ .module = .sampling, .name = "md_accept_rejection" },
        .{ .grid = .{ b * team.blocks, 1, 1 }, .block = Team.threads },
        params,
    );
}
