//! Root of the tests of everything but the kernels: handles, statuses, the executor, and the C
//! functions on both backends.
test {
    _ = @import("abi/manifest.zig");
    _ = @import("core/check.zig");
    _ = @import("core/errors.zig");
    _ = @import("core/handles.zig");
    _ = @import("core/os.zig");
    _ = @import("cpu/executor_test.zig");
    _ = @import("cpu/levels.zig");
    _ = @import("cuda/driver_test.zig");
    _ = @import("cuda/launch.zig");
    _ = @import("cuda/layout.zig");
    _ = @import("cuda/modules.zig");
    _ = @import("cuda/access.zig");
    _ = @import("cuda/ops/attention_decode.zig");
    _ = @import("cuda/ops/linear_skinny.zig");
    _ = @import("cuda/ops/linear_cluster.zig");
    _ = @import("cuda/ops/sample.zig");
    _ = @import("cuda/plan.zig");
    _ = @import("cuda/ops/linear_tiled.zig");
    _ = @import("tests/api_test.zig");
    _ = @import("tests/checks_test.zig");
}
