"""Writes ort_abi.h, the part of ONNX Runtime's C ABI that the door uses.

    python csrc/ort/generate_abi.py FOLDER > csrc/ort/ort_abi.h

FOLDER holds ort_api_members.tsv, ort_custom_op_fields.tsv and enums.tsv: the places, offsets and values of ONNX
Runtime's own headers. The signatures below are the ones of its documentation. To use one more function, add its line
here and run again.
"""

import csv
import sys
from pathlib import Path

OPAQUE = (
    "OrtStatus",
    "OrtValue",
    "OrtTensorTypeAndShapeInfo",
    "OrtTypeInfo",
    "OrtSessionOptions",
    "OrtCustomOpDomain",
    "OrtKernelInfo",
    "OrtKernelContext",
    "OrtShapeInferContext",
    "OrtOpAttr",
    "OrtKeyValuePairs",
)
ENUMS = (
    "ONNXTensorElementDataType",
    "OrtCustomOpInputOutputCharacteristic",
    "OrtMemType",
    "OrtErrorCode",
    "OrtOpAttrType",
)

STATUS = "OrtStatus*"  # null is success

# name: (result, parameters)
FUNCTIONS = {
    "CreateStatus": (STATUS, "OrtErrorCode code, const char* message"),
    "ReleaseStatus": ("void", "OrtStatus* status"),
    "CreateCustomOpDomain": (STATUS, "const char* name, OrtCustomOpDomain** out"),
    "CustomOpDomain_Add": (STATUS, "OrtCustomOpDomain* domain, const OrtCustomOp* op"),
    "AddCustomOpDomain": (STATUS, "OrtSessionOptions* options, OrtCustomOpDomain* domain"),
    "HasSessionConfigEntry": (STATUS, "const OrtSessionOptions* options, const char* key, int* out"),
    "AddSessionConfigEntry": (STATUS, "OrtSessionOptions* options, const char* key, const char* value"),
    # tensors
    "GetTensorMutableData": (STATUS, "OrtValue* value, void** out"),
    "GetTensorElementTypeAndShapeDataReference": (
        STATUS,
        "const OrtValue* value, ONNXTensorElementDataType* type, const int64_t** dims, size_t* num_dims",
    ),
    "GetTensorTypeAndShape": (STATUS, "const OrtValue* value, OrtTensorTypeAndShapeInfo** out"),
    "CreateTensorTypeAndShapeInfo": (STATUS, "OrtTensorTypeAndShapeInfo** out"),
    "ReleaseTensorTypeAndShapeInfo": ("void", "OrtTensorTypeAndShapeInfo* info"),
    "GetTensorElementType": (STATUS, "const OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType* out"),
    "SetTensorElementType": (STATUS, "OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType type"),
    "GetDimensionsCount": (STATUS, "const OrtTensorTypeAndShapeInfo* info, size_t* out"),
    "GetDimensions": (STATUS, "const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t num_dims"),
    "SetDimensions": (STATUS, "OrtTensorTypeAndShapeInfo* info, const int64_t* dims, size_t num_dims"),
    "GetSymbolicDimensions": (STATUS, "const OrtTensorTypeAndShapeInfo* info, const char** names, size_t num_dims"),
    "SetSymbolicDimensions": (STATUS, "OrtTensorTypeAndShapeInfo* info, const char** names, size_t num_dims"),
    "CastTypeInfoToTensorInfo": (STATUS, "const OrtTypeInfo* info, const OrtTensorTypeAndShapeInfo** borrowed"),
    "ReleaseTypeInfo": ("void", "OrtTypeInfo* info"),
    # a node, while its kernel is created
    "KernelInfo_GetInputCount": (STATUS, "const OrtKernelInfo* info, size_t* out"),
    "KernelInfo_GetInputTypeInfo": (STATUS, "const OrtKernelInfo* info, size_t index, OrtTypeInfo** out"),
    "KernelInfoGetAttribute_float": (STATUS, "const OrtKernelInfo* info, const char* name, float* out"),
    "KernelInfoGetAttribute_int64": (STATUS, "const OrtKernelInfo* info, const char* name, int64_t* out"),
    "KernelInfoGetAttribute_string": (STATUS, "const OrtKernelInfo* info, const char* name, char* out, size_t* bytes"),
    "KernelInfoGetAttributeArray_float": (
        STATUS,
        "const OrtKernelInfo* info, const char* name, float* out, size_t* count",
    ),
    "KernelInfoGetAttributeArray_int64": (
        STATUS,
        "const OrtKernelInfo* info, const char* name, int64_t* out, size_t* count",
    ),
    "KernelInfoGetConstantInput_tensor": (
        STATUS,
        "const OrtKernelInfo* info, size_t index, int* is_constant, const OrtValue** borrowed",
    ),
    "KernelInfo_GetConfigEntries": (STATUS, "const OrtKernelInfo* info, OrtKeyValuePairs** out"),
    "GetKeyValue": ("const char*", "const OrtKeyValuePairs* pairs, const char* key"),
    "ReleaseKeyValuePairs": ("void", "OrtKeyValuePairs* pairs"),
    # a node, while it computes
    "KernelContext_GetInput": (STATUS, "const OrtKernelContext* context, size_t index, const OrtValue** borrowed"),
    "KernelContext_GetOutput": (
        STATUS,
        "OrtKernelContext* context, size_t index, const int64_t* dims, size_t num_dims, OrtValue** borrowed",
    ),
    "KernelContext_ParallelFor": (
        STATUS,
        "const OrtKernelContext* context, void (*body)(void* user, size_t i), size_t total, size_t num_batch, "
        "void* user",
    ),
    # shape inference
    "ShapeInferContext_GetInputTypeShape": (
        STATUS,
        "const OrtShapeInferContext* context, size_t index, OrtTensorTypeAndShapeInfo** borrowed",
    ),
    "ShapeInferContext_SetOutputTypeShape": (
        STATUS,
        "const OrtShapeInferContext* context, size_t index, const OrtTensorTypeAndShapeInfo* info",
    ),
    "ShapeInferContext_GetAttribute": (
        STATUS,
        "const OrtShapeInferContext* context, const char* name, const OrtOpAttr** borrowed",
    ),
    "ReadOpAttr": (STATUS, "const OrtOpAttr* attribute, OrtOpAttrType type, void* data, size_t bytes, size_t* out"),
}

# name: (result, parameters)
CUSTOM_OP = {
    "CreateKernel": ("void*", "const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info"),
    "GetName": ("const char*", "const OrtCustomOp* op"),
    "GetExecutionProviderType": ("const char*", "const OrtCustomOp* op"),
    "GetInputType": ("ONNXTensorElementDataType", "const OrtCustomOp* op, size_t index"),
    "GetInputTypeCount": ("size_t", "const OrtCustomOp* op"),
    "GetOutputType": ("ONNXTensorElementDataType", "const OrtCustomOp* op, size_t index"),
    "GetOutputTypeCount": ("size_t", "const OrtCustomOp* op"),
    "KernelCompute": ("void", "void* kernel, OrtKernelContext* context"),
    "KernelDestroy": ("void", "void* kernel"),
    "GetInputCharacteristic": ("OrtCustomOpInputOutputCharacteristic", "const OrtCustomOp* op, size_t index"),
    "GetOutputCharacteristic": ("OrtCustomOpInputOutputCharacteristic", "const OrtCustomOp* op, size_t index"),
    "GetInputMemoryType": ("OrtMemType", "const OrtCustomOp* op, size_t index"),
    "GetVariadicInputMinArity": ("int", "const OrtCustomOp* op"),
    "GetVariadicInputHomogeneity": ("int", "const OrtCustomOp* op"),
    "GetVariadicOutputMinArity": ("int", "const OrtCustomOp* op"),
    "GetVariadicOutputHomogeneity": ("int", "const OrtCustomOp* op"),
    "CreateKernelV2": (STATUS, "const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel"),
    "KernelComputeV2": (STATUS, "void* kernel, OrtKernelContext* context"),
    "InferOutputShapeFn": (STATUS, "const OrtCustomOp* op, OrtShapeInferContext* context"),
    "GetStartVersion": ("int", "const OrtCustomOp* op"),
    "GetEndVersion": ("int", "const OrtCustomOp* op"),
    "GetMayInplace": ("size_t", "int** inputs, int** outputs"),
    "ReleaseMayInplace": ("void", "int* inputs, int* outputs"),
    "GetAliasMap": ("size_t", "int** inputs, int** outputs"),
    "ReleaseAliasMap": ("void", "int* inputs, int* outputs"),
}

LOWEST_MINOR = 17  # the first version with shape inference and the session's threads: what module.cc asks for

HEADER = """\
// The part of ONNX Runtime's C ABI that this door uses. Generated by generate_abi.py; do not edit.
// The table of functions only grows at its end, so a place holds for every later version. "since" marks what came after
// 1.17, the lowest version that the door works with.
#pragma once
#include <cstddef>
#include <cstdint>

namespace dsf::ort_door {
"""


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def since(row: dict[str, str]) -> str:
    version = row["since_version"]
    return f"  // since {version}" if int(version.split(".")[1]) > LOWEST_MINOR else ""


def enum_lines(name: str, values: list[dict[str, str]]) -> list[str]:
    lines = [f"enum {name} : int32_t {{"]
    lines += [f"  {row['name']} = {row['value']}," for row in values if row["enum"] == name]
    return [*lines, "};", ""]


def table_lines(members: list[dict[str, str]]) -> list[str]:
    """The struct OrtApi: the functions that we call, and the gaps between them."""
    lines, place = ["struct OrtApi {"], 0
    for row in members:
        if row["name"] not in FUNCTIONS:
            continue
        index = int(row["index"])
        if index > place:
            lines.append(f"  void* gap_{place}[{index - place}];")
        result, parameters = FUNCTIONS[row["name"]]
        lines.append(f"  {result} (*{row['name']})({parameters});{since(row)}")
        place = index + 1
    lines += ["};"]
    checks = [
        f"static_assert(offsetof(OrtApi, {r['name']}) == 8 * {r['index']});" for r in members if r["name"] in FUNCTIONS
    ]
    return [*lines, *checks, ""]


def custom_op_lines(fields: list[dict[str, str]]) -> list[str]:
    """The struct OrtCustomOp, whole: ONNX Runtime reads as much of it as its field `version` says."""
    lines = ["struct OrtCustomOp {", "  uint32_t version;"]
    for row in fields[1:]:
        result, parameters = CUSTOM_OP[row["name"]]
        lines.append(f"  {result} (*{row['name']})({parameters});{since(row)}")
    lines.append("};")
    checks = [f"static_assert(offsetof(OrtCustomOp, {r['name']}) == {r['offset_lp64']});" for r in fields]
    return [*lines, *checks, ""]


def main() -> None:
    folder = Path(sys.argv[1])
    members = rows(folder, "ort_api_members.tsv")
    missing = set(FUNCTIONS) - {row["name"] for row in members}
    if missing:
        names = ", ".join(sorted(missing))
        sys.exit(f"generate_abi: ort_api_members.tsv must list every function; got none named {names}")
    lines = [HEADER, *(f"struct {name};" for name in (*OPAQUE, "OrtCustomOp")), ""]
    enums = rows(folder, "enums.tsv")
    for name in ENUMS:
        lines += enum_lines(name, enums)
    lines += table_lines(members)
    lines += custom_op_lines(rows(folder, "ort_custom_op_fields.tsv"))
    lines += [
        "struct OrtApiBase {",
        "  const OrtApi* (*GetApi)(uint32_t version);  // null above the runtime's own version",
        "  const char* (*GetVersionString)();",
        "};",
        "",
        "}  // namespace dsf::ort_door",
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
