// Deterministic DDIM on the grid that this bundle's UNet was distilled on, for Apple's ml-stable-diffusion package.
//
// Never run on Apple hardware. Compiled and compared with the Python sampler on Linux, against stand-ins for
// MLShapedArray and the Scheduler protocol.
//
// To register it in the package (revision e12202c):
//   1. copy this file into swift/StableDiffusion/pipeline/;
//   2. add `case ddimScheduler` to the enum StableDiffusionScheduler;
//   3. add, wherever a scheduler is made from that enum (a switch in each pipeline's generateImages),
//          case .ddimScheduler: return DDIMScheduler(stepCount: config.stepCount)
//   4. for the command line, map an option such as `ddim` to `.ddimScheduler`.
// Then ask for as many steps as manifest.json says, at its guidance scale.

#if canImport(CoreML)
import CoreML
#else
import Foundation
#endif

/// What the UNet returns. An exported SnapFusion UNet returns noise (`output_prediction` in manifest.json).
public enum DDIMPrediction {
    case epsilon
    case velocity
}

/// z_t = alpha_t x + sigma_t eps, stepped from one grid point to the next and from the last to the clean latent.
@available(iOS 16.2, macOS 13.1, *)
public final class DDIMScheduler: Scheduler {
    public let trainStepCount: Int
    public let inferenceStepCount: Int
    public let betas: [Float]
    public let alphas: [Float]
    public let alphasCumProd: [Float]
    /// Falling: round(T - k T / N) - 1, halves to even.
    public let timeSteps: [Int]
    /// The clean latent estimated last, which the pipeline decodes.
    public private(set) var modelOutputs: [MLShapedArray<Float32>] = []

    private let prediction: DDIMPrediction
    private let signalPower: [Double]

    /// The schedule's defaults are Stable Diffusion's: square roots of the betas rise evenly.
    public init(
        stepCount: Int = 8,
        trainStepCount: Int = 1000,
        betaStart: Double = 0.00085,
        betaEnd: Double = 0.012,
        prediction: DDIMPrediction = .epsilon
    ) {
        precondition(stepCount >= 1 && stepCount <= trainStepCount, "expected 1 to \(trainStepCount) steps")
        self.trainStepCount = trainStepCount
        self.inferenceStepCount = stepCount
        self.prediction = prediction

        let first = betaStart.squareRoot()
        let rise = (betaEnd.squareRoot() - first) / Double(max(trainStepCount - 1, 1))
        var power = 1.0
        var exactBetas: [Double] = []
        var powers: [Double] = []
        for t in 0..<trainStepCount {
            let root = first + rise * Double(t)
            exactBetas.append(root * root)
            power *= 1 - root * root
            powers.append(power)
        }
        betas = exactBetas.map { Float($0) }
        alphas = exactBetas.map { Float(1 - $0) }
        alphasCumProd = powers.map { Float($0) }
        signalPower = powers

        let spacing = Double(trainStepCount) / Double(stepCount)
        timeSteps = (0..<stepCount).map { k in
            Int((Double(trainStepCount) - Double(k) * spacing).rounded(.toNearestOrEven)) - 1
        }
    }

    /// From the grid point `t` to the next one; after the last one the clean latent.
    public func step(
        output: MLShapedArray<Float32>,
        timeStep t: Int,
        sample s: MLShapedArray<Float32>
    ) -> MLShapedArray<Float32> {
        guard let position = timeSteps.firstIndex(of: t) else {
            preconditionFailure("timestep \(t) is not on the grid \(timeSteps)")
        }
        let next = position + 1 < timeSteps.count ? signalPower[timeSteps[position + 1]] : 1.0
        let (alpha, sigma) = (signalPower[t].squareRoot(), (1 - signalPower[t]).squareRoot())
        let (nextAlpha, nextSigma) = (next.squareRoot(), (1 - next).squareRoot())

        let outputs = output.scalars
        var clean = s.scalars
        var stepped = clean
        for i in clean.indices {
            let (z, found) = (Double(clean[i]), Double(outputs[i]))
            let x: Double
            let eps: Double
            switch prediction {
            case .epsilon:
                (x, eps) = ((z - sigma * found) / alpha, found)
            case .velocity:
                (x, eps) = (alpha * z - sigma * found, sigma * z + alpha * found)
            }
            clean[i] = Float32(x)
            stepped[i] = Float32(nextAlpha * x + nextSigma * eps)
        }
        modelOutputs = [MLShapedArray(scalars: clean, shape: s.shape)]
        return MLShapedArray(scalars: stepped, shape: s.shape)
    }
}
