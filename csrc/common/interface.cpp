// What a library says of itself before it is loaded: for which schemas of the ops its entries were compiled.
// sparsegnn/_native.py holds the same number, and reads this one from the file; a test keeps account of the schemas.

namespace sparsegnn {
namespace {

__attribute__((used)) const char interface[] = "sparsegnn-interface:4;";

}  // namespace
}  // namespace sparsegnn
