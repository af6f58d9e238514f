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
    _ = @import("tests/api_test.zig");
    _ = @import("tests/checks_test.zig");
}
