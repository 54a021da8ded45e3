// Stand-ins for what DDIMScheduler.swift finds in CoreML and in Apple's package, so that it compiles on Linux.

public struct MLShapedArray<Scalar> {
    public let scalars: [Scalar]
    public let shape: [Int]

    public init(scalars: [Scalar], shape: [Int]) {
        precondition(scalars.count == shape.reduce(1, *))
        self.scalars = scalars
        self.shape = shape
    }
}

/// The requirements of the protocol that have no default there.
public protocol Scheduler {
    var trainStepCount: Int { get }
    var inferenceStepCount: Int { get }
    var timeSteps: [Int] { get }
    var betas: [Float] { get }
    var alphas: [Float] { get }
    var alphasCumProd: [Float] { get }
    var modelOutputs: [MLShapedArray<Float32>] { get }
    func step(output: MLShapedArray<Float32>, timeStep t: Int, sample s: MLShapedArray<Float32>)
        -> MLShapedArray<Float32>
}
