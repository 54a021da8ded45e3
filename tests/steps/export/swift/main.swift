// Samples with a made-up network, 0.3 z + 0.1 sin(t), from a line of numbers; prints grid, result and clean latent.

import Foundation

let arguments = CommandLine.arguments
let steps = Int(arguments[1])!
let scheduler = DDIMScheduler(stepCount: steps, prediction: arguments[2] == "velocity" ? .velocity : .epsilon)
let start = readLine()!.split(separator: " ").map { Float($0)! }
var z = MLShapedArray<Float32>(scalars: start, shape: [1, start.count])
for t in scheduler.timeSteps {
    let shift = Float(0.1 * sin(Double(t)))
    let output = MLShapedArray<Float32>(scalars: z.scalars.map { 0.3 * $0 + shift }, shape: z.shape)
    z = scheduler.step(output: output, timeStep: t, sample: z)
}
print(scheduler.timeSteps.map(String.init).joined(separator: " "))
print(z.scalars.map { String($0) }.joined(separator: " "))
print(scheduler.modelOutputs.last!.scalars.map { String($0) }.joined(separator: " "))
