//! Root of one CPU level's object: build.zig compiles this file once for each level, with that
//! level's instructions, and names the table that it exports.
const options = @import("level_options");
const kernel_mod = @import("cpu/kernel.zig");
const simd = @import("cpu/simd.zig");
const elementwise = @import("cpu/ops/elementwise.zig");
const linear = @import("cpu/ops/linear.zig");
const attention = @import("cpu/ops/attention.zig");

const table: kernel_mod.LevelTable = .{
    .lanes = simd.W,
    .bf16_dot = @intFromBool(simd.bf16_dot),
    .embedding = @import("cpu/ops/embedding.zig").embedding,
    .rms_norm = @import("cpu/ops/rms_norm.zig").rms_norm,
    .linear = linear.linear,
    .weight_pack = @import("cpu/ops/weight_pack.zig").weight_pack,
    .rope_table = @import("cpu/ops/rope_table.zig").rope_table,
    .rope_append = @import("cpu/ops/rope_append.zig").rope_append,
    .attention = attention.attention,
    .silu_mul = elementwise.silu_mul,
    .add = elementwise.add,
    .cast = elementwise.cast,
    .copy = @import("cpu/ops/copy.zig").copy,
    .positions = @import("cpu/ops/positions.zig").positions,
    .keep_queries = @import("cpu/ops/keep_queries.zig").keep_queries,
    .snap_score = @import("cpu/ops/snap_score.zig").snap_score,
    .snap_select = @import("cpu/ops/snap_select.zig").snap_select,
    .gather_kv = @import("cpu/ops/gather_kv.zig").gather_kv,
    .sample = @import("cpu/ops/sample.zig").sample,
    .accept = @import("cpu/ops/accept.zig").accept,
    .publish = @import("cpu/ops/publish.zig").publish,
    .packed_weight_bytes = &linear.packed_weight_bytes,
    .attention_workspace_bytes = &attention.attention_workspace_bytes,
    .probe = &@import("cpu/ops/probe.zig").probe,
};

comptime {
    @export(&table, .{ .name = options.table_name, .visibility = .hidden });
}
