//! Root of the kernels' tests, which build.zig runs once for each CPU level of this machine.
test {
    _ = @import("cpu/simd.zig");
    _ = @import("cpu/ops/accept.zig");
    _ = @import("cpu/ops/attention_tile.zig");
    _ = @import("cpu/ops/copy.zig");
    _ = @import("cpu/ops/elementwise.zig");
    _ = @import("cpu/ops/embedding.zig");
    _ = @import("cpu/ops/linear.zig");
    _ = @import("cpu/ops/philox.zig");
    _ = @import("cpu/ops/positions.zig");
    _ = @import("cpu/ops/probe.zig");
    _ = @import("cpu/ops/publish.zig");
    _ = @import("cpu/ops/race.zig");
    _ = @import("cpu/ops/rms_norm.zig");
    _ = @import("cpu/ops/rope_table.zig");
    _ = @import("cpu/ops/sample.zig");
    _ = @import("cpu/ops/weight_pack.zig");
    _ = @import("tests/attention_test.zig");
    _ = @import("tests/cache_test.zig");
    _ = @import("tests/rejection_test.zig");
    _ = @import("tests/sampling_test.zig");
    _ = @import("tests/speculation_test.zig");
}
