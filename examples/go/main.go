// Asks about an image over gRPC, whole and then as a stream.
//
//	examples/go/generate.sh && go run . [IMAGE [QUESTION]]
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	pb "example/gen/pixtral/v1"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func main() {
	image, question := argument(1, "../../docs/demo/street.png"), argument(2, "How many shapes are there?")
	target := os.Getenv("PIXTRAL_TARGET")
	if target == "" {
		target = "127.0.0.1:50051"
	}
	connection, err := grpc.Dial(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	defer connection.Close()
	client := pb.NewChatServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	listed, err := client.ListModels(ctx, &pb.ListModelsRequest{})
	check(err)
	fmt.Println("model:", listed.Models[0].Name)

	data, err := os.ReadFile(image)
	check(err)
	chat := &pb.Chat{
		Messages: []*pb.Message{{
			Role: pb.Role_ROLE_USER,
			Content: []*pb.ContentPart{
				{Part: &pb.ContentPart_Image{Image: &pb.Image{Source: &pb.Image_Data{Data: data}}}},
				{Part: &pb.ContentPart_Text{Text: question}},
			},
		}},
		Sampling: &pb.SamplingParams{Temperature: proto.Float64(0)},
	}
	answer, err := client.Complete(ctx, &pb.CompleteRequest{Chat: chat})
	check(err)
	usage := answer.Completion.Usage
	fmt.Println("whole:", answer.Choices[0].Text)
	fmt.Println("tokens:", usage.PromptTokens, "and", usage.CompletionTokens)

	stream, err := client.StreamComplete(ctx, &pb.StreamCompleteRequest{Chat: chat})
	check(err)
	fmt.Print("stream: ")
	for {
		event, err := stream.Recv()
		if err == io.EOF {
			break
		}
		check(err)
		fmt.Print(event.GetDelta().GetText())
	}
	fmt.Println()

	chat.Sampling.Temperature = proto.Float64(-1)
	_, err = client.Complete(ctx, &pb.CompleteRequest{Chat: chat})
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			fmt.Println("refused:", info.Reason)
		}
	}
}

func argument(index int, otherwise string) string {
	if index < len(os.Args) {
		return os.Args[index]
	}
	return otherwise
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
