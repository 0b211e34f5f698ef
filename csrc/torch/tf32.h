#pragma once

namespace torchconv {

bool allows_tf32();  // torch's own switch, torch.backends.cudnn.conv.fp32_precision

}  // namespace torchconv
